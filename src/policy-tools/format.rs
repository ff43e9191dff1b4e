//! One layout for all policies: Cedar's own formatter, with a check that nothing is lost.

use std::path::{Path, PathBuf};

use cedar_policy::PolicySet;
use cedar_policy_formatter::{Config, policies_str_to_pretty};

use portcullis_policy::{File, Finding};
use portcullis_policy::{is_tools_file, read_files, span};

/// The defaults of `cedar format` and of editors.
const LAYOUT: Config = Config { line_width: 80, indent_width: 2 };

/// Maximum number of passes until the layout of a text is stable.
const ROUNDS: usize = 4;

/// A policy file, before and after formatting.
#[derive(Debug)]
pub struct Formatted {
    /// The name of the file, as given.
    pub name: PathBuf,
    pub before: String,
    pub after: String,
}

/// Formats files, and all `*.cedar` files of folders. A file that cannot be formatted is a finding.
pub fn format_files(paths: &[PathBuf], base: &Path) -> (Vec<Formatted>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut formatted = Vec::new();
    let files = read_files(paths, base, &mut findings);
    for file in files.into_iter().filter(|file| !is_tools_file(&file.name)) {
        match format_file(&file) {
            Ok(after) => {
                formatted.push(Formatted { name: file.name, before: file.text.to_string(), after })
            }
            Err(found) => findings.extend(found),
        }
    }
    (formatted, findings)
}

/// Formats a text of policies; findings use `name`.
///
/// # Errors
/// If it is not valid Cedar, or a comment would be lost.
pub fn format(name: &Path, text: &str) -> Result<String, Vec<Finding>> {
    format_file(&File { name: name.to_owned(), text: text.into() })
}

/// One policy in the common layout, if the formatter can lay it out.
pub(super) fn pretty(policy: &str) -> Option<String> {
    Some(policies_str_to_pretty(policy, &LAYOUT).ok()?.trim().to_owned())
}

fn format_file(file: &File) -> Result<String, Vec<Finding>> {
    let failed = |problem: String| {
        vec![
            Finding::error("policy-format", problem)
                .file(&file.name)
                .help("format this file by hand; it was not changed"),
        ]
    };
    let mut text = file.text.to_string();
    for _ in 0..ROUNDS {
        let pretty = lay_out(file, &text)?.map_err(failed)?;
        if pretty == text {
            // The formatter checks that policies stay the same, but not comments.
            return match lost(&file.text, &text) {
                None => Ok(text),
                Some(comment) => {
                    Err(failed(format!("the formatter would lose the comment `{comment}`")))
                }
            };
        }
        text = pretty;
    }
    Err(failed("the formatter finds no layout that it leaves alone".to_owned()))
}

/// Formats each policy with Cedar's formatter. Text between policies is handled here: Cedar's
/// formatter attaches every comment to the next policy, so the heading of a file would become the
/// comment of its first policy.
fn lay_out(file: &File, text: &str) -> Result<Result<String, String>, Vec<Finding>> {
    let parsed = text.parse::<PolicySet>().map_err(|errors| {
        errors.iter().map(|error| Finding::of("policy-syntax", file, error)).collect::<Vec<_>>()
    })?;
    let mut spans: Vec<_> = parsed.policies().map(|one| span(one.as_ref().loc())).collect();
    spans.extend(parsed.templates().map(|one| span(one.as_ref().loc())));
    spans.sort_unstable();
    let mut pretty = String::with_capacity(text.len());
    let mut end = 0;
    for (start, length) in spans {
        let (Some(between), Some(policy)) = (text.get(end..start), text.get(start..start + length))
        else {
            return Ok(Err("the formatter cannot tell the policies apart".to_owned()));
        };
        comments_between(between, &mut pretty);
        match policies_str_to_pretty(policy, &LAYOUT) {
            Ok(policy) => pretty.push_str(policy.trim()),
            Err(error) => return Ok(Err(format!("the formatter gives up: {error}"))),
        }
        end = start + length;
    }
    comments_between(text.get(end..).unwrap_or_default(), &mut pretty);
    let end = pretty.trim_end().len();
    pretty.truncate(end);
    if !pretty.is_empty() {
        pretty.push('\n');
    }
    Ok(Ok(pretty))
}

/// Adds the comments before, between or after policies, with an empty line where there is one in
/// the text, and between policies.
fn comments_between(text: &str, pretty: &mut String) {
    let first = pretty.is_empty();
    let mut lines = text.split('\n').map(str::trim).peekable();
    if !first {
        // A comment at the end of a line belongs to the policy before it.
        if let Some(rest) = lines.next().filter(|rest| !rest.is_empty()) {
            pretty.push(' ');
            pretty.push_str(rest);
        }
        pretty.push('\n');
    }
    let mut apart = !first;
    while let Some(line) = lines.next() {
        if line.is_empty() {
            // The last line is the beginning of the next policy's line.
            apart |= lines.peek().is_some();
            continue;
        }
        if apart && !pretty.is_empty() {
            pretty.push('\n');
        }
        pretty.push_str(line);
        pretty.push('\n');
        apart = false;
    }
    if apart && !pretty.is_empty() {
        pretty.push('\n');
    }
}

/// A comment of the first text that is missing in the second one.
fn lost<'a>(before: &'a str, after: &str) -> Option<&'a str> {
    let mut remaining = comments(after);
    comments(before).into_iter().find(|comment| {
        match remaining.iter().position(|other| other == comment) {
            Some(at) => {
                remaining.swap_remove(at);
                false
            }
            None => true,
        }
    })
}

/// The comments of a text, which must be valid Cedar.
fn comments(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['"', '/']) {
        let from = &rest[at..];
        rest = if from.starts_with("//") {
            let (comment, after) = from.split_once('\n').unwrap_or((from, ""));
            found.push(comment.trim_end());
            after
        } else if let Some(string) = from.strip_prefix('"') {
            past_string(string)
        } else {
            &from[1..]
        };
    }
    found
}

/// The text after a string, given the text after its opening quote.
fn past_string(text: &str) -> &str {
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return &text[at + 1..],
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pretty(text: &str) -> String {
        format(Path::new("a.cedar"), text).unwrap()
    }

    #[test]
    fn comments_keep_their_positions() {
        insta::assert_snapshot!(pretty("


// A heading.
//
// More of it.


// Of the first.
@id(\"a\") permit(principal,action,resource is Portcullis::Tool) // all
  when { // why
    principal.verified || // b
    // own line
    context.session_calls<3 }; // behind
  // between

// of the second
forbid(principal,action,resource);forbid(principal,action,resource)
when { resource in [Portcullis::Tool::\"notes/list_notes\", Portcullis::Tool::\"notes/read_note\", Portcullis::Tool::\"n/a\"] };

// the end"), @r#"
        // A heading.
        //
        // More of it.

        // Of the first.
        @id("a")
        permit (
          principal,
          action,
          resource is Portcullis::Tool
        ) // all
        when
        { // why
          principal.verified || // b
          // own line
          context.session_calls < 3
        }; // behind

        // between

        // of the second
        forbid (principal, action, resource);

        forbid (principal, action, resource)
        when
        {
          resource in [Portcullis::Tool::"notes/list_notes",
           Portcullis::Tool::"notes/read_note",
           Portcullis::Tool::"n/a"]
        };

        // the end
        "#);
        for (before, after) in [
            ("", ""),
            ("\n\n", ""),
            ("// a\n\n\n\n // b", "// a\n\n// b\n"),
            (
                "// a\r\npermit(principal,action,resource);\r\n",
                "// a\npermit (principal, action, resource);\n",
            ),
        ] {
            assert_eq!(pretty(before), after, "{before:?}");
        }
    }

    #[test]
    fn comments_in_strings_are_ignored() {
        assert_eq!(
            comments(
                "// a\npermit (principal, action, resource) // b \r\nwhen { \"// \\\" no\" == \"\" }; //c"
            ),
            ["// a", "// b", "//c"]
        );
        assert_eq!(lost("// a\n// b\n// a", "// a\n// b"), Some("// a"));
        assert_eq!(lost("// a\n// b", "// b\n  // a\n"), None);
    }
}
