//! YAML files of cases and of other kinds, in which every unknown key is an error with its
//! position.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_saphyr::Error;

use portcullis_policy::{File, Finding};

/// Reads a file; a fault is a finding with that code. Files are small: exceeding the parser's
/// budget is an error.
pub fn read<T: DeserializeOwned>(file: &File, code: &'static str) -> Result<T, Box<Finding>> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(&file.text, options)
        .map_err(|error| Box::new(explain(file, code, &error)))
}

fn explain(file: &File, code: &'static str, error: &Error) -> Finding {
    let unknown = |what: &str, word: &str, known: &[&'static str]| {
        let near = known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, word));
        let near =
            near.filter(|near| strsim::damerau_levenshtein(near, word) <= 2.max(near.len() / 3));
        let label = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "is not known here".to_owned(),
        };
        let list: Vec<_> = known.iter().map(|known| format!("`{known}`")).collect();
        let help = format!("known here: {}", list.join(", "));
        (format!("unknown {what} `{}`", word.escape_debug()), label, Some(help))
    };
    let (message, label, help) = match error {
        Error::SerdeUnknownField { field, expected, .. } => unknown("key", field, expected),
        Error::SerdeUnknownVariant { variant, expected, .. } => unknown("value", variant, expected),
        Error::SerdeMissingField { field, .. } => {
            (format!("the key `{field}` is missing"), "in what begins here".to_owned(), None)
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or_default();
            (format!("the key `{}` stands twice", key.escape_debug()), String::new(), None)
        }
        other => {
            let text = other.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            // The position is shown separately.
            let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
            (text.to_owned(), String::new(), None)
        }
    };
    let finding = Finding::error(code, message);
    let finding = match error.location() {
        Some(location) => {
            let (start, length) = span(file, location);
            finding.at(file, start, length, &label)
        }
        None => finding.file(&file.name),
    };
    match help {
        Some(help) => finding.help(help),
        None => finding,
    }
}

/// Offset and length of the text at a location: to the end of its line, if it has no length of its
/// own or spans several lines.
pub fn span(file: &File, location: serde_saphyr::Location) -> (usize, usize) {
    let line = usize::try_from(location.line()).unwrap_or(1).max(1);
    let column = usize::try_from(location.column()).unwrap_or(1).max(1);
    let start: usize = file.text.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let rest = file.text.get(start..).unwrap_or_default();
    let rest = rest.split('\n').next().unwrap_or_default();
    let column = rest.char_indices().nth(column - 1).map_or(rest.len(), |(at, _)| at);
    let own = location.span().byte_len().and_then(|length| usize::try_from(length).ok());
    let line = rest[column..].trim_end().len();
    let length = own.filter(|own| *own > 0 && *own <= line).unwrap_or(line);
    (start + column, length)
}

/// Whether the name of a file is that of a case file.
pub fn is_case_file(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        [".test.yaml", ".test.yml"].iter().any(|end| name.ends_with(end) && name.len() > end.len())
    })
}
