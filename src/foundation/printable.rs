//! Characters that must not reach a terminal or a log unescaped.

use std::borrow::Cow;

/// Whether a character could control a terminal or hide text from its reader: control characters,
/// line and paragraph separators, marks of direction (Unicode Standard Annex 9), invisible
/// characters, and the tags and variation selectors of plane 14.
pub fn can_steer(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Whether all characters are printable ASCII, of which none can steer. Compiles to a few
/// instructions for 16 bytes.
fn is_printable_ascii(text: &str) -> bool {
    text.bytes().fold(true, |all, byte| all & matches!(byte, b' '..=b'~'))
}

/// Text with such characters escaped as `\uXXXX`, one for each UTF-16 unit, except those for which
/// `keeps` returns true. The format is JSON's own: a JSON text with such characters only within
/// strings keeps its value.
pub fn escaped(text: &str, keeps: impl Fn(char) -> bool) -> Cow<'_, str> {
    let steers = |c: char| can_steer(c) && !keeps(c);
    if is_printable_ascii(text) || !text.contains(steers) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if steers(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_character_is_escaped() {
        for c in
            ('\0'..='\u{ffff}').chain('\u{1f000}'..='\u{1ffff}').chain('\u{e0000}'..='\u{e1000}')
        {
            let text = format!("plain {c} text");
            let changed = escaped(&text, |_| false) != text;
            assert_eq!(changed, can_steer(c), "{c:?}");
        }
    }

    #[test]
    fn escaped_json_string_keeps_its_value() {
        let text = "a\u{202e}b\u{e0041}\u{e0100}c\u{200b}\u{2028}\u{9b}\u{feff}é日\u{1f512}";
        let json = serde_json::to_string(text).unwrap();
        let escaped = escaped(&json, |_| false);
        assert!(!escaped.contains(can_steer), "{escaped}");
        assert!(escaped.contains("\\udb40\\udc41") && escaped.contains("é日\u{1f512}"));
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
    }
}
