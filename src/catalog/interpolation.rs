//! References to variables in text from elsewhere, in every form that a client defines.
//!
//! | form | client |
//! |---|---|
//! | `${NAME}`, `${NAME:-default}` | Claude Code, Gemini CLI, Kiro, Goose |
//! | `$NAME`, `%NAME%` | Gemini CLI (`%NAME%` on Windows) |
//! | `${env:NAME}` | VS Code, Cursor, Windsurf, Roo, Amazon Q |
//! | `{env:NAME}`, `{file:PATH}` | OpenCode |
//! | `${input:ID}`, `${workspaceFolder}`, `${config:…}`, `${command:…}` | VS Code |
//! | `${file:PATH}` | Windsurf |
//! | `${{ secrets.NAME }}`, `${{ env.NAME }}`, `${{ inputs.NAME }}` | Continue |
//!
//! The forms are recognized in the files of all clients. Invariant: a reference is never
//! substituted; the file only chooses a name, and [`crate::draft::Draft::source`] decides what that
//! name refers to.

use crate::name::is_variable;

/// The references in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// No reference: the text is the value.
    Literal,
    /// The text is exactly a reference to this variable.
    Variable(&'a str),
    /// The text is exactly an input of VS Code, with this id.
    Input(&'a str),
    /// References with other text, or a reference to something else, such as a file.
    Built,
}

/// Finds references in a text.
pub(crate) fn content(text: &str) -> Content<'_> {
    let Some((at, length, reference)) = first(text) else { return Content::Literal };
    if at == 0 && length == text.len() { reference } else { Content::Built }
}

/// The first reference: its offset, its length in bytes, and its content.
fn first(text: &str) -> Option<(usize, usize, Content<'_>)> {
    text.match_indices(['$', '%', '{']).find_map(|(at, _)| {
        let (length, reference) = reference(&text[at..])?;
        Some((at, length, reference))
    })
}

/// The reference at the beginning of a text.
fn reference(text: &str) -> Option<(usize, Content<'_>)> {
    let built = |length| (length, Content::Built);
    if let Some(rest) = text.strip_prefix("${{") {
        let Some(end) = rest.find("}}") else { return Some(built(text.len())) };
        let name = rest[..end].trim();
        let kinds = ["secrets.", "inputs.", "env."];
        let name = kinds.iter().find_map(|kind| name.strip_prefix(kind));
        let reference =
            name.filter(|name| is_variable(name)).map_or(Content::Built, Content::Variable);
        return Some((3 + end + 2, reference));
    }
    if let Some(rest) = text.strip_prefix("${") {
        // An unclosed reference is not a value.
        let Some(end) = closing(rest) else { return Some(built(text.len())) };
        return Some((2 + end + 1, braced(&rest[..end])));
    }
    for kind in ["env:", "file:"] {
        let Some(rest) = text.strip_prefix('{').and_then(|rest| rest.strip_prefix(kind)) else {
            continue;
        };
        let Some(end) = rest.find('}') else { return Some(built(text.len())) };
        let name = Some(&rest[..end]).filter(|name| kind == "env:" && is_variable(name));
        let length = 1 + kind.len() + end + 1;
        return Some((length, name.map_or(Content::Built, Content::Variable)));
    }
    if let Some(rest) = text.strip_prefix('$') {
        let (before, name) = rest.strip_prefix("env:").map_or((1, rest), |name| (5, name));
        let name =
            &name[..name.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count()];
        return is_variable(name).then_some((before + name.len(), Content::Variable(name)));
    }
    let rest = text.strip_prefix('%')?;
    let name = &rest[..rest.find('%')?];
    // `%Y%` is part of a date format.
    (is_variable(name) && name.len() > 1).then_some((name.len() + 2, Content::Variable(name)))
}

/// Offset of the brace that closes the text, past nested braces.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    text.bytes().enumerate().find_map(|(at, byte)| {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
        None
    })
}

/// Content of the text between `${` and `}`.
fn braced(inner: &str) -> Content<'_> {
    if let Some(id) = inner.strip_prefix("input:") {
        return Content::Input(id);
    }
    let name = inner.strip_prefix("env:").unwrap_or(inner);
    // A default value is ignored: the operator says where the value comes from.
    let name = name.find([':', '-', '?', '+', '=']).map_or(name, |end| &name[..end]);
    let other = ["workspaceFolder", "workspaceFolderBasename", "userHome", "pathSeparator"];
    let kind = inner
        .split_once(':')
        .is_some_and(|(kind, rest)| kind != "env" && !rest.starts_with(['-', '?', '+', '=']));
    if kind || other.contains(&name) || !is_variable(name) {
        return Content::Built;
    }
    Content::Variable(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_of_every_client_are_recognized() {
        use Content::{Built, Input, Literal, Variable};
        for (text, expected) in [
            ("${TOKEN}", Variable("TOKEN")),
            ("${TOKEN:-none}", Variable("TOKEN")),
            ("${TOKEN:-${OTHER}}", Variable("TOKEN")),
            ("${TOKEN-none}", Variable("TOKEN")),
            ("${env:TOKEN}", Variable("TOKEN")),
            ("${env:TOKEN:-none}", Variable("TOKEN")),
            ("{env:TOKEN}", Variable("TOKEN")),
            ("$TOKEN", Variable("TOKEN")),
            ("$env:TOKEN", Variable("TOKEN")),
            ("%TOKEN%", Variable("TOKEN")),
            ("${{ secrets.TOKEN }}", Variable("TOKEN")),
            ("${{inputs.TOKEN}}", Variable("TOKEN")),
            ("${{ env.TOKEN }}", Variable("TOKEN")),
            ("${env://TOKEN}", Built),
            ("${input:key}", Input("key")),
            ("${file:/etc/shadow}", Built),
            ("{file:~/.key}", Built),
            ("${workspaceFolder}", Built),
            ("${userHome}", Built),
            ("${config:a.b}", Built),
            ("${command:x}", Built),
            ("${}", Built),
            ("${1}", Built),
            ("${TOKEN", Built),
            ("${{ secrets.TOKEN", Built),
            ("Bearer ${TOKEN}", Built),
            ("Bearer $TOKEN", Built),
            ("${A}${B}", Built),
            ("x%TOKEN%", Built),
            ("{env:A}:{env:B}", Built),
            (" ${TOKEN}", Built),
            ("", Literal),
            ("info", Literal),
            ("100%", Literal),
            ("%Y%m%d", Literal),
            ("50% of 100%", Literal),
            ("$", Literal),
            ("$1", Literal),
            ("a{b}c", Literal),
            ("{\"a\": 1}", Literal),
            ("^x.*$", Literal),
        ] {
            assert_eq!(content(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn reference_is_never_a_literal(
            before in "[ -~é]{0,6}", name in "[A-Za-z_][A-Za-z0-9_]{1,8}", after in "[ -~é]{0,6}"
        ) {
            for form in [format!("${{{name}}}"), format!("${{env:{name}}}"), format!("{{env:{name}}}")] {
                let text = format!("{before}{form}{after}");
                prop_assert_ne!(content(&text), Content::Literal);
            }
        }

        #[test]
        fn variable_name_is_part_of_the_text(text in "[${}%:a-zA-Z_ -]{0,24}|.{0,24}") {
            if let Content::Variable(name) = content(&text) {
                prop_assert!(text.contains(name) && is_variable(name));
            }
        }
    }
}
