//! One variable of a `.env` file.
//!
//! There is no specification, and readers differ: most put in other variables where `$` stands
//! (`dotenvy` even those of the process), Docker's `--env-file` does not, and of a name that stands
//! twice some take the first and some the last. A secret that is cut or exchanged without a word
//! is worse than none, so whatever readers differ about is refused here, with the way to write it.

use zeroize::Zeroizing;

use crate::{error::Why, source::legal_variable};

/// The value of a variable in the text of such a file.
///
/// # Errors
/// Where there is none, or readers would not agree which. Names the line, never what is on it.
pub(crate) fn find(text: &str, name: &str) -> Result<Zeroizing<String>, Why> {
    let mut found = None;
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let bad = |what: &str| Why::new(format!("line {number}: {what}"));
        let (key, value) = line.split_once('=').ok_or_else(|| bad("this is not NAME=VALUE"))?;
        let key = key.trim_end();
        if !legal_variable(key) {
            return Err(bad("the text before `=` is not a variable name"));
        }
        let mut value = Zeroizing::new(value.trim_start().to_owned());
        // A quoted value may go on in the lines that follow.
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
            return Err(bad("this variable stands here a second time: keep one"));
        }
        found = Some(read(&value).map_err(bad)?);
    }
    found.ok_or_else(|| Why::new("it has no such variable"))
}

/// Where a quoted text ends: the place of the closing quote.
fn end(value: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    value.char_indices().skip(1).find_map(|(at, c)| {
        let closes = c == quote && !escaped;
        escaped = quote == '"' && c == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn read(value: &str) -> Result<Zeroizing<String>, &'static str> {
    const DOLLAR: &str =
        "`$` would be read as a variable by some: put the value into single quotes";
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
        return Err("something stands behind the closing quote");
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
                        "a backslash here has no meaning: put the value into single quotes",
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
    fn what_all_readers_agree_on() {
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
        assert_eq!(find(file, "H").unwrap_err().to_string(), "it has no such variable");
    }

    #[test]
    fn what_readers_differ_about_is_refused_and_not_repeated() {
        let word = ["hun", "ter2"].concat();
        for (value, what) in [
            (format!("{word}$HOME"), "`$`"),
            (format!("\"{word}${{X}}\""), "`$`"),
            (format!("a {word}"), "quotes, backslashes"),
            (format!("{word}'b"), "quotes, backslashes"),
            (format!("\"{word}"), "never closed"),
            (format!("\"{word}\\x\""), "backslash"),
            (format!("'{word}'{word}"), "behind the closing quote"),
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
