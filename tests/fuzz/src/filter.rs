//! The language of filters: whoever may ask writes what they like.

use portcullis_audit::Filter;

/// Bytes of a filter that are looked at; longer ones are not read.
const MOST: usize = 64 << 10;

/// A text is a filter or is told why not; what a filter prints is the same filter.
pub fn target(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Filter>() {
        Ok(filter) => {
            let printed = filter.to_string();
            let again: Filter = match printed.parse() {
                Ok(again) => again,
                Err(wrong) => panic!("`{printed}` of `{text}` is not a filter: {wrong}"),
            };
            assert_eq!(again, filter, "`{printed}` of `{text}` says something else");
            assert_eq!(again.to_string(), printed, "`{text}` is not printed alike");
            let json = serde_json::to_string(&filter).expect("JSON");
            let sent: Filter = serde_json::from_str(&json).expect("a filter");
            assert_eq!(sent, filter, "`{json}`");
        }
        Err(wrong) => {
            let said = wrong.to_string();
            assert!(!said.is_empty() && said.len() < MOST, "{} bytes of words", said.len());
        }
    }
}
