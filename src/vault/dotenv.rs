//! Reads one variable of a `.env` file.
//!
//! There is no specification, and parsers differ. Most expand `$` (`dotenvy` even with the
//! process's variables); Docker's `--env-file` does not. Of a name that occurs twice, some take the
//! first value and some the last. A silently truncated or wrong secret is worse than an error, so
//! every line that parsers read differently is refused, and the error says how to write it.

use zeroize::Zeroizing;

use crate::{error::BackendError, source::legal_variable};

/// Value of a variable in the text of a `.env` file.
///
/// # Errors
/// If the variable is missing, or parsers read its line differently. Names the line, never its
/// content.
pub(crate) fn find(text: &str, name: &str) -> Result<Zeroizing<String>, BackendError> {
    let mut found = None;
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let bad = |what: &str| BackendError::new(format!("line {number}: {what}"));
        let (key, value) = line.split_once('=').ok_or_else(|| bad("this is not NAME=VALUE"))?;
        let key = key.trim_end();
        if !legal_variable(key) {
            return Err(bad("the text before `=` is not a variable name"));
        }
        let mut value = Zeroizing::new(value.trim_start().to_owned());
        // A quoted value may continue on the following lines.
        if let Some(quote @ ('"' | '\'')) = value.chars().next() {
            while end(&value, quote).is_none() {
                let Some((more, _)) = lines.next() else {
                    return Err(bad("its quote is never closed"));
                };
                let longer = Zeroizing::new([&value, more].join("\n"));
                value = longer;
            }
        }
        if key != name {
            continue;
        }
        if found.is_some() {
            return Err(bad("this variable is set a second time: keep one"));
        }
        found = Some(read(&value).map_err(bad)?);
    }
    found.ok_or_else(|| BackendError::new("it does not have this variable"))
}

/// Position of the closing quote.
fn end(value: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    value.char_indices().skip(1).find_map(|(at, c)| {
        let closes = c == quote && !escaped;
        escaped = quote == '"' && c == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn read(value: &str) -> Result<Zeroizing<String>, &'static str> {
    const DOLLAR: &str = "some parsers expand `$`: put the value into single quotes";
    let Some(quote @ ('"' | '\'')) = value.chars().next() else {
        let bare = match value.find(" #").or_else(|| value.find("\t#")) {
            Some(comment) => &value[..comment],
            None => value,
        };
        let bare = bare.trim_end();
        return match bare {
            _ if bare.contains('$') => Err(DOLLAR),
            _ if bare.contains(['"', '\'', '\\', '`', ' ', '\t']) => {
                Err("quotes, backslashes and spaces need single quotes around the value")
            }
            _ => Ok(Zeroizing::new(bare.to_owned())),
        };
    };
    let end = end(value, quote).ok_or("its quote is never closed")?;
    let after = value[end + 1..].trim();
    if !after.is_empty() && !after.starts_with('#') {
        return Err("there is text after the closing quote");
    }
    let inside = &value[1..end];
    if quote == '\'' {
        return Ok(Zeroizing::new(inside.to_owned()));
    }
    let mut text = Zeroizing::new(String::with_capacity(inside.len()));
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '$' => return Err(DOLLAR),
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(c @ ('"' | '\\' | '$')) => c,
                _ => {
                    return Err(
                        "parsers differ about this backslash: put the value into single quotes",
                    );
                }
            },
            c => c,
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unambiguous_lines_are_read() {
        let file = "# comment\n\nA=plain # comment\n export B = 'as $is \\n'\nC=\"a\\nb\\\\c\\\"d\\$e\"\n\
                    D='two\nlines' # comment\r\nE=x#y\nF=\nG=\"\"\n";
        for (name, value) in [
            ("A", "plain"),
            ("B", "as $is \\n"),
            ("C", "a\nb\\c\"d$e"),
            ("D", "two\nlines"),
            ("E", "x#y"),
            ("F", ""),
            ("G", ""),
        ] {
            assert_eq!(find(file, name).unwrap().as_str(), value, "{name}");
        }
        assert_eq!(find(file, "H").unwrap_err().to_string(), "it does not have this variable");
    }

    #[test]
    fn ambiguous_lines_are_refused_and_not_repeated() {
        let word = ["hun", "ter2"].concat();
        for (value, what) in [
            (format!("{word}$HOME"), "`$`"),
            (format!("\"{word}${{X}}\""), "`$`"),
            (format!("a {word}"), "quotes, backslashes"),
            (format!("{word}'b"), "quotes, backslashes"),
            (format!("\"{word}"), "never closed"),
            (format!("\"{word}\\x\""), "backslash"),
            (format!("'{word}'{word}"), "after the closing quote"),
            (format!("{word}\nA={word}"), "second time"),
            (format!("{word}\n{word}"), "not NAME=VALUE"),
            (format!("{word}\n{word} x={word}"), "not a variable name"),
        ] {
            let error = find(&format!("A={value}\n"), "A").unwrap_err().to_string();
            assert!(error.contains(what) && error.starts_with("line "), "{error}");
            assert!(!error.contains(&word), "{error}");
        }
    }
}
