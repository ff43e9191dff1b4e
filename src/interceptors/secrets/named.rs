//! Finds values in a text by the names in front of them: `PASSWORD=…`, `Authorization: …`, `--token
//! …`, `?api_key=…`, `"secret": "…"`, `<password>…</password>`, and the password of a URL.
//!
//! For records and displays only. It prefers to redact too much: in free text the end of a value is
//! a guess, so of an unquoted value at the start of a line the whole line is taken.

use std::{cell::Cell, collections::HashSet, ops::Range};

use super::names::{Counts, is_named_by_another, is_secret, may_hold_name, names_another};

/// Number of bytes in front of a separator that are searched for its name.
const MAX_NAME_BYTES: usize = 96;
/// Limit of Markdown characters around a name.
const MAX_EMPHASIS: usize = 3;
/// Rule name in marks for values that only their name marks as secret.
pub(super) const NAMED: &str = "secret-name";
/// Number of bytes in front of a name that are searched for the start of its line.
const MAX_INDENT: usize = 256;
/// Limit of the words of a name with spaces, such as `secret access key`.
const MAX_NAME_WORDS: usize = 3;
/// Words in front of a credential, in a header and elsewhere.
const SCHEMES: &[&str] =
    &["bearer", "basic", "token", "digest", "negotiate", "apikey", "api-key", "key", "bot"];
/// Values that are not secrets, whatever their name.
const LITERALS: &[&str] = &["true", "false", "null", "none", "undefined"];
/// Words that may precede a field at the start of its line.
const LINE_WORDS: &[&str] = &["export", "setenv", "set", "ENV", "ARG", "env:", "declare", "local"];
/// Minimum length in bytes of a token after `Bearer`, with and without a digit.
const MIN_BEARER_BYTES: (usize, usize) = (8, 20);

/// Limit of the steps for each byte of a text, in addition to [`BASE_STEPS`]. After that, the rest of
/// the text counts as one value. The work is linear anyway: this is a second barrier.
const MAX_STEPS_PER_BYTE: usize = 64;
const BASE_STEPS: usize = 64 << 10;

/// Ranges of values that only their name marks as secret, in order and disjoint. Each begins and
/// ends between characters. The work is linear in the text: a value is read once, whether it is a
/// secret or not, and everything else that is read is short or ends where the next name can begin.
/// `ids` are those of marks.
pub(super) fn values(text: &str, ids: &HashSet<String>) -> Vec<Range<usize>> {
    let most = BASE_STEPS.saturating_add(text.len().saturating_mul(MAX_STEPS_PER_BYTE));
    values_within(text, ids, most).0
}

/// Same with a limit of steps; returns the used steps too.
fn values_within(text: &str, ids: &HashSet<String>, most: usize) -> (Vec<Range<usize>>, usize) {
    let mut found: Vec<Range<usize>> = Vec::new();
    if !text.contains("://") && !may_hold_name(text.as_bytes()) {
        return (found, text.len());
    }
    let reader = Reader(text, Cell::new(0), Cell::new((1, 0)), ids);
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if reader.1.get() > most {
            found.push(text.ceil_char_boundary(at)..text.len());
            break;
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let next = rest.iter().position(|b| matches!(b, b'=' | b':' | b'>' | b'-' | b' '));
        reader.spend(next.unwrap_or(rest.len()) + 1);
        let Some(next) = next else { break };
        at += next;
        match reader.value_behind(at) {
            Some(Behind { range, is_secret }) => {
                at = range.end.max(at + 1);
                if is_secret {
                    found.push(range);
                }
            }
            None => at += 1,
        }
    }
    (found, reader.1.get())
}

/// Text, used steps, a position with that of the next `<` after it, and the ids of marks.
struct Reader<'a>(&'a str, Cell<usize>, Cell<(usize, usize)>, &'a HashSet<String>);

/// Value after a name.
struct Behind {
    range: Range<usize>,
    /// Whether it is a secret. Other values contain no names either, so nothing in them is read
    /// again.
    is_secret: bool,
}

/// Name in front of a separator.
struct Name {
    start: usize,
    /// Quote around it, or only in front of it.
    quote: Option<u8>,
    /// Whether the quote ends after the name, as that of a JSON key does.
    closed: bool,
    /// Kind of numbers after it that are counts.
    counts: Counts,
}

impl Reader<'_> {
    fn spend(&self, steps: usize) {
        self.1.set(self.1.get().saturating_add(steps));
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.0.as_bytes().get(at).copied()
    }

    fn before(&self, at: usize) -> Option<u8> {
        self.byte(at.checked_sub(1)?)
    }

    /// Value after a separator at this position, if a name or a scheme in front of it makes it a
    /// secret.
    fn value_behind(&self, at: usize) -> Option<Behind> {
        let range = match self.byte(at)? {
            b':' if self.0.get(at..at + 3) == Some("://") => self.password_of_url(at + 3)?,
            // `:=` is handled at its second character, and `::` is a path of a program.
            b':' if matches!(self.byte(at + 1), Some(b'=' | b':')) => return None,
            b'=' if self.byte(at + 1) == Some(b'=') || self.compares(at) => return None,
            b':' | b'=' => {
                let name = self.name(at)?;
                let range = self.value(at, &name)?;
                if let Some(end) = self.count_end(range.clone(), &name) {
                    return Some(Behind { range: range.start..end, is_secret: false });
                }
                range
            }
            b'>' => self.element(at)?,
            b'-' => self.flag(at)?,
            _ => self.bearer(at)?,
        };
        let value = self.0.get(range.clone())?;
        let is_secret = !is_harmless(value, self.3);
        Some(Behind { range, is_secret })
    }

    /// End of a value that is a count: the whole value, or the first of several fields on a line
    /// (`tokens=12, n=3`).
    fn count_end(&self, range: Range<usize>, name: &Name) -> Option<usize> {
        let value = self.0.get(range.clone())?;
        if name.counts.hold(value) {
            return Some(range.end);
        }
        let is_quoted = matches!(self.before(range.start), Some(b'"' | b'\'' | b'`'));
        let first = value.bytes().take(MAX_NAME_BYTES).position(|b| b == b',')?;
        if is_quoted || name.closed || !name.counts.hold(value.get(..first)?) {
            return None;
        }
        let rest = value.as_bytes().get(first..)?.strip_prefix(b", ")?;
        let of_name = |b: &u8| b.is_ascii_alphanumeric() || b"_-.".contains(b);
        let next = rest.iter().take(MAX_NAME_BYTES).take_while(|b| of_name(b)).count();
        (next > 0 && matches!(rest.get(next), Some(b'=' | b':'))).then_some(range.start + first)
    }

    fn compares(&self, at: usize) -> bool {
        matches!(self.before(at), Some(b'=' | b'!' | b'<' | b'>' | b'~'))
    }

    /// Name in front of a separator, if it is that of a secret.
    fn name(&self, separator: usize) -> Option<Name> {
        let bytes = self.0.as_bytes();
        let mut end = separator;
        if self.byte(separator) == Some(b'=') && self.before(end) == Some(b':') {
            end -= 1;
        }
        let spaces = bytes.get(..end)?.iter().rev().take_while(|b| matches!(b, b' ' | b'\t'));
        end -= spaces.take(MAX_NAME_BYTES).count();
        // Markdown: `**Password**: x`. A name in backticks with a colon introduces an explanation:
        // plain words follow.
        let is_mark = |b: &u8| *b == b'*' || *b == b'`' && self.byte(separator) == Some(b'=');
        let emphasis = |end: usize| {
            let before = bytes.get(..end).unwrap_or_default().iter().rev();
            before.take(MAX_EMPHASIS).take_while(|b| is_mark(b)).count()
        };
        let closing = emphasis(end);
        end -= closing;
        // Program: `config["password"] = x`.
        let is_index = self.before(end) == Some(b']')
            && end.checked_sub(1).is_some_and(|end| matches!(self.before(end), Some(b'"' | b'\'')));
        end -= usize::from(is_index);
        let least = end.saturating_sub(MAX_NAME_BYTES);
        let quote = self.before(end).filter(|b| matches!(b, b'"' | b'\''));
        if let Some(quote) = quote {
            if self.before(end - 1) == Some(b'\\') {
                // An escaped quote: the next layer of the text has the name without it.
                return None;
            }
            let inner = bytes.get(least..end - 1)?;
            let start = inner.iter().rposition(|b| *b == quote).map_or(least, |at| least + at + 1);
            let start = self.0.ceil_char_boundary(start);
            let name = self.0.get(start..end - 1)?;
            self.spend(inner.len() + name.len());
            let is_secret = is_secret(name) || self.is_named_before(start.saturating_sub(1), name);
            return is_secret.then(|| Name {
                start: start.saturating_sub(1),
                quote: Some(quote).filter(|_| !is_index),
                closed: !is_index,
                counts: Counts::of(name),
            });
        }
        let of_name = |b: &u8| b.is_ascii_alphanumeric() || b"_-.[]".contains(b) || *b >= 0x80;
        let mut start = end;
        for _ in 0..MAX_NAME_WORDS {
            let word = bytes.get(least..start)?.iter().rev().take_while(|b| of_name(b)).count();
            if word == 0 {
                return None;
            }
            start -= word;
            self.spend(word + end - start);
            let name = self.0.get(self.0.ceil_char_boundary(start)..end)?;
            if is_secret(name) || self.is_named_before(start, name) {
                if closing > 0 {
                    start -= emphasis(start);
                }
                let quote = self.before(start).filter(|b| matches!(b, b'"' | b'\''));
                return Some(Name { start, quote, closed: false, counts: Counts::of(name) });
            }
            if self.before(start) != Some(b' ') || start <= least {
                return None;
            }
            start -= 1;
        }
        None
    }

    /// Whether a field with this name that begins here has the value of what the previous field
    /// names: `name: DB_PASSWORD`, then `value: x`; `key="password" value="x"`.
    fn is_named_before(&self, at: usize, name: &str) -> bool {
        if !is_named_by_another(name) {
            return false;
        }
        let least = self.0.ceil_char_boundary(at.saturating_sub(2 * MAX_NAME_BYTES));
        let before = self.0.get(least..at).unwrap_or_default();
        let field = before.trim_end_matches(|c: char| c.is_whitespace() || ",;".contains(c));
        let Some((key, named)) = field.rsplit_once([':', '=']) else {
            self.spend(before.len());
            return false;
        };
        let quotes = ['"', '\''];
        let key = key.trim_end().trim_end_matches(quotes);
        let key = key.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next();
        let key = key.unwrap_or_default();
        self.spend(before.len() - field.len() + 2 * named.len() + key.len());
        names_another(key) && !named.contains('\n') && is_secret(named.trim().trim_matches(quotes))
    }

    /// Value after a name and its separator.
    fn value(&self, separator: usize, name: &Name) -> Option<Range<usize>> {
        let mut at = separator + 1;
        if self.byte(separator) == Some(b'=') && self.byte(at) == Some(b'>') {
            at += 1;
        }
        if self.before(name.start) == Some(b'*') {
            // `**Password:** x`.
            at = self.until(at, |b| b != b'*');
        }
        at = self.skip_blanks(at);
        if name.closed {
            at += self.0.get(at..)?.len() - self.0.get(at..)?.trim_start().len();
        }
        // A string prefix of Python.
        if self.byte(at).is_some_and(|b| b"bBfFrRuU".contains(&b))
            && matches!(self.byte(at + 1), Some(b'"' | b'\''))
        {
            at += 1;
        }
        match self.byte(at)? {
            quote @ (b'"' | b'\'' | b'`') => Some(self.quoted(at, quote)),
            b'{' | b'[' if !self.is_mark(at) => Some(at..self.balanced(at)),
            _ if name.closed => Some(at..self.until(at, |b| b",}]\r\n".contains(&b))),
            _ => match name.quote {
                Some(quote) => {
                    Some(at..self.until(at, |b| b == quote || matches!(b, b'\r' | b'\n')))
                }
                None => self.unquoted(at, separator, name.start),
            },
        }
    }

    /// Value without quotes in free text.
    fn unquoted(&self, at: usize, separator: usize, name: usize) -> Option<Range<usize>> {
        let is_cookie = self.0.get(name..separator)?.trim_end().to_ascii_lowercase();
        // A header: the field of a form ends at the next.
        let is_cookie = self.byte(separator) == Some(b':') && is_cookie.ends_with("cookie");
        if !self.begins_line(name) {
            if is_cookie {
                return Some(at..self.cookies(at));
            }
            let mut end = self.word(at);
            if self.0.get(at..end).is_some_and(is_scheme) {
                end = self.word(self.skip_blanks(end));
            }
            return Some(at..end);
        }
        let line_end = self.until(at, |b| matches!(b, b'\r' | b'\n'));
        let line = self.0.get(at..line_end)?;
        let is_block = self.byte(separator) == Some(b':')
            && (line.trim().is_empty()
                || matches!(line.trim_end(), "|" | ">" | "|-" | ">-" | "|+" | ">+"));
        if is_block {
            return Some(at..self.block_end(line_end, self.indent(name)));
        }
        let end = self.word(at);
        // In a form body or a query, the next field is not part of the value.
        let is_field = self.byte(end) == Some(b'&') && !is_cookie;
        Some(at..if is_field { end } else { line_end })
    }

    /// The end of the pairs of a `Cookie` or `Set-Cookie` header. Values may be in quotes (RFC 6265,
    /// section 4.1.1).
    fn cookies(&self, from: usize) -> usize {
        let mut at = from;
        loop {
            at = self.until(at, |b| b.is_ascii_whitespace() || b"\"'`<>".contains(&b));
            at = match (self.before(at), self.byte(at)) {
                (Some(b'='), Some(b'"')) => {
                    let end = self.until(at + 1, |b| matches!(b, b'"' | b'\r' | b'\n'));
                    end + usize::from(self.byte(end) == Some(b'"'))
                }
                (Some(b';'), Some(b' ')) => at + 1,
                _ => return at,
            };
        }
    }

    /// End of a word: white space, a quote, or the next field of a form.
    fn word(&self, from: usize) -> usize {
        let bytes = self.0.as_bytes();
        let mut at = from;
        while let Some(&byte) = bytes.get(at) {
            if byte.is_ascii_whitespace() || b"\"'`<>".contains(&byte) {
                break;
            }
            if byte == b'&' {
                let of_name = |b: &u8| b.is_ascii_alphanumeric() || b"_-.%[]".contains(b);
                let rest = bytes.get(at + 1..).unwrap_or_default();
                // Fields with longer names belong to the value.
                let name = rest.iter().take(MAX_NAME_BYTES).take_while(|b| of_name(b)).count();
                if name > 0 && rest.get(name) == Some(&b'=') {
                    break;
                }
            }
            at += 1;
        }
        self.spend(2 * (at - from));
        at
    }

    /// Whether only text that may precede a field precedes a name on its line: blanks, marks of
    /// lists and quotations, `export`.
    fn begins_line(&self, name: usize) -> bool {
        let least = self.0.ceil_char_boundary(name.saturating_sub(MAX_INDENT));
        let before = self.0.get(least..name).unwrap_or_default();
        let is_mark =
            |c: char| c.is_whitespace() && !matches!(c, '\n' | '\r') || "-*+>#<|$".contains(c);
        let is_start =
            |front: &str| front.ends_with(['\n', '\r']) || front.is_empty() && least == 0;
        let front = before.trim_end_matches(is_mark);
        let word = LINE_WORDS.iter().find_map(|word| front.strip_suffix(word));
        let start = word.map(|front| front.trim_end_matches(is_mark));
        self.spend(before.len() - start.unwrap_or(front).len());
        is_start(front) || start.is_some_and(is_start)
    }

    /// Number of blanks at the start of a name's line, if near.
    fn indent(&self, name: usize) -> usize {
        let before = self.0.as_bytes().get(..name).unwrap_or_default();
        before
            .iter()
            .rev()
            .take(MAX_INDENT)
            .take_while(|b| matches!(b, b' ' | b'\t' | b'-'))
            .count()
    }

    /// End of the lines that are indented deeper than `indent`.
    fn block_end(&self, line_end: usize, indent: usize) -> usize {
        // Each break ends a line, because it may be `\n`, `\r\n` or `\r`.
        let mut lines = self.0.get(line_end..).unwrap_or_default().split_inclusive(['\r', '\n']);
        let mut end = line_end + lines.next().map_or(0, str::len);
        for line in lines {
            let blanks = line.len() - line.trim_start().len();
            self.spend(line.len());
            if !line.trim().is_empty() && blanks <= indent {
                break;
            }
            end += line.len();
        }
        end
    }

    fn skip_blanks(&self, from: usize) -> usize {
        self.until(from, |b| !matches!(b, b' ' | b'\t'))
    }

    fn until(&self, from: usize, stop: impl Fn(u8) -> bool) -> usize {
        let rest = self.0.as_bytes().get(from..).unwrap_or_default();
        let read = rest.iter().position(|b| stop(*b)).unwrap_or(rest.len());
        self.spend(read);
        from + read
    }

    /// Content of the quotes that begin here, up to the end of the text if they do not end.
    fn quoted(&self, at: usize, quote: u8) -> Range<usize> {
        let bytes = self.0.as_bytes();
        let triple = bytes.get(at..at + 3) == Some(&[quote; 3]);
        let start = if triple { at + 3 } else { at + 1 };
        let mut end = start;
        while let Some(&byte) = bytes.get(end) {
            if byte == b'\\' {
                end += 2;
            } else if byte == quote && (!triple || bytes.get(end..end + 3) == Some(&[quote; 3])) {
                self.spend(end - at);
                return start..end;
            } else {
                end += 1;
            }
        }
        self.spend(bytes.len() - at);
        start..bytes.len()
    }

    /// End of the brackets that begin here, or the end of the text if they do not end.
    fn balanced(&self, from: usize) -> usize {
        let mut depth = 0_usize;
        let mut at = from;
        while let Some(byte) = self.byte(at) {
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                quote @ (b'"' | b'\'') => at = self.quoted(at, quote).end,
                _ => {}
            }
            at += 1;
            self.spend(1);
            if depth == 0 {
                return at.min(self.0.len());
            }
        }
        self.0.len()
    }

    fn is_mark(&self, at: usize) -> bool {
        self.0.get(at..).is_some_and(|rest| rest.starts_with("[redacted"))
    }

    /// Password in the authority of a URL that begins here.
    fn password_of_url(&self, at: usize) -> Option<Range<usize>> {
        let end = self.until(at, |b| b.is_ascii_whitespace() || b"/?#\"'<>\\`".contains(&b));
        let authority = self.0.get(at..end)?;
        let (user, _) = authority.rsplit_once('@')?;
        let colon = user.find(':')?;
        Some(at + colon + 1..at + user.len())
    }

    /// Text of an XML element whose start tag ends here.
    fn element(&self, at: usize) -> Option<Range<usize>> {
        let bytes = self.0.as_bytes();
        let least = at.saturating_sub(MAX_NAME_BYTES);
        // A start tag ends at its first `>` outside of an attribute's quotes.
        let is_quoted = matches!(self.before(at), Some(b'"' | b'\''));
        let is_edge = |b: &u8| *b == b'<' || *b == b'>' && !is_quoted;
        let tag = bytes.get(least..at)?.iter().rposition(is_edge).map(|tag| least + tag);
        self.spend(at - tag.unwrap_or(least));
        let tag = tag.filter(|tag| self.byte(*tag) == Some(b'<'))?;
        let start = tag + 1;
        let name = self.0.get(start..at)?.split_whitespace().next()?;
        if name.starts_with('/') || name.ends_with('/') || !is_secret(name) {
            return None;
        }
        let end = match self.2.get() {
            (from, end) if (from..=end).contains(&(at + 1)) => end,
            _ => self.until(at + 1, |b| b == b'<'),
        };
        self.2.set((at + 1, end));
        (self.byte(end + 1) == Some(b'/')).then_some(at + 1..end)
    }

    /// Value of a command-line flag that begins here and is not joined by `=`.
    fn flag(&self, at: usize) -> Option<Range<usize>> {
        if self.before(at).is_some_and(|b| !b.is_ascii_whitespace() && !b"\"'`[(,".contains(&b)) {
            return None;
        }
        let start = self.until(at, |b| b != b'-');
        let end = self.until(start, |b| !(b.is_ascii_alphanumeric() || b"_-.".contains(&b)));
        if start - at > 2 || end - start < 2 || end - start > MAX_NAME_BYTES {
            return None;
        }
        // Between two arguments of a list there are quotes and a comma.
        let value = self.until(end, |b| !b"\"', \t".contains(&b));
        let gap = self.0.get(end..value)?;
        if gap.is_empty() || value - end > 8 || matches!(self.byte(value), None | Some(b'-')) {
            return None;
        }
        if !is_secret(self.0.get(start..end)?) {
            return None;
        }
        match gap.bytes().next_back() {
            Some(quote @ (b'"' | b'\'')) => Some(self.quoted(value - 1, quote)),
            _ => Some(value..self.word(value)),
        }
    }

    /// Token after `Bearer`, whatever precedes that.
    fn bearer(&self, at: usize) -> Option<Range<usize>> {
        let scheme = self.0.get(at.checked_sub(6)?..at)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let start = self.skip_blanks(at);
        let of_token = |b: u8| b.is_ascii_alphanumeric() || b"+/_.~=-".contains(&b);
        let end = self.until(start, |b| !of_token(b));
        let token = self.0.get(start..end)?;
        let shortest = match token.bytes().any(|b| b.is_ascii_digit()) {
            true => MIN_BEARER_BYTES.0,
            false => MIN_BEARER_BYTES.1,
        };
        (token.len() >= shortest).then_some(start..end)
    }
}

fn is_scheme(word: &str) -> bool {
    SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// Whether a value is not a secret: it is empty, a literal, or already redacted, with one of these
/// ids.
pub(super) fn is_harmless(value: &str, ids: &HashSet<String>) -> bool {
    let value = value.trim();
    let literal = value.trim_end_matches([',', ';']);
    if value.is_empty() || LITERALS.iter().any(|word| literal.eq_ignore_ascii_case(word)) {
        return true;
    }
    let credential = match value.split_once(' ') {
        Some((scheme, rest)) if is_scheme(scheme) => rest.trim_start(),
        _ => value,
    };
    // Text after a mark closes the text around it.
    let mark = credential.strip_prefix("[redacted").and_then(|rest| rest.split_once(']'));
    mark.is_some_and(|(id, behind)| {
        let is_id = |id: &str| id == NAMED || ids.contains(id);
        (id.is_empty() || id.strip_prefix(':').is_some_and(is_id))
            && behind.bytes().all(|b| b.is_ascii_punctuation() || b == b' ')
    })
}

#[cfg(test)]
mod tests;
