//! Matching of URIs with URI templates (RFC 6570).

/// Longest accepted template, in bytes.
const LONGEST: usize = 1_024;

/// Whether a URI could be an expansion of the template. A simple expression (`{var}`) matches text
/// without `/`; one with an operator (`{+var}`, `{?q}`) matches any text, also an empty one.
///
/// A server writes the template, so the match must be linear: it is a regular expression.
pub fn matches(template: &str, uri: &str) -> bool {
    if template.len() > LONGEST {
        return false;
    }
    let mut pattern = String::from(r"\A");
    let mut rest = template;
    while let Some((literal, tail)) = rest.split_once('{') {
        let Some((expression, tail)) = tail.split_once('}') else { return false };
        pattern.push_str(&regex::escape(literal));
        let operator = expression.starts_with(['+', '#', '.', '/', ';', '?', '&']);
        pattern.push_str(if operator { ".*" } else { "[^/]+" });
        rest = tail;
    }
    pattern.push_str(&regex::escape(rest));
    pattern.push_str(r"\z");
    regex::RegexBuilder::new(&pattern)
        .size_limit(1 << 20)
        .dot_matches_new_line(true)
        .build()
        .is_ok_and(|regex| regex.is_match(uri))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn uris_match_templates() {
        for (template, uri, expected) in [
            ("note:///{name}", "note:///a", true),
            ("note:///{name}", "note:///", false),
            ("note:///{name}", "note:///a/b", false),
            ("file:///{+path}", "file:///a/b", true),
            ("db://{table}/rows/{id}", "db://t/rows/7", true),
            ("db://{table}/rows/{id}", "db://t/cols/7", false),
            ("db://{table}/rows/{id}", "db://t/rows/7/x", false),
            ("a://b", "a://b", true),
            ("a://b{?q}", "a://b", true),
            ("a://b{?q}", "a://b?q=1", true),
            ("a://{x", "a://1", false),
            ("x{a}{b}", "xyz", true),
        ] {
            assert_eq!(matches(template, uri), expected, "{template} {uri}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_template_causes_no_panic(template in "[a-c{}+/é]{0,20}", uri in "[a-c/é]{0,20}") {
            let _ = matches(&template, &uri);
        }
    }
}
