//! Fixtures and common assertions.
#![allow(dead_code, reason = "each test uses a part of it")]

use portcullis_catalog::{Kind, Options, ParsedFile, Problem, Server, read};

/// A secret, built here so that no file contains it.
pub fn secret() -> String {
    ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat()
}

pub fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.replace("@SECRET@", &secret())
}

pub fn found(name: &str, options: &Options) -> ParsedFile {
    let found = read(&fixture(name), options).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let text = serde_json::to_string(&found).expect("JSON");
    assert!(!text.contains(&secret()), "a secret is in what was read: {text}");
    assert!(!format!("{found:?}").contains(&secret()), "a secret is in what was read");
    found
}

pub fn server<'a>(found: &'a ParsedFile, name: &str) -> &'a Server {
    let entry = found.servers.iter().find(|entry| entry.name == name);
    let entry = entry.unwrap_or_else(|| panic!("there is no `{name}`"));
    entry.server.as_ref().unwrap_or_else(|problems| panic!("{name}: {problems:?}"))
}

pub fn problems<'a>(found: &'a ParsedFile, name: &str) -> &'a [Problem] {
    let entry = found.servers.iter().find(|entry| entry.name == name);
    let entry = entry.unwrap_or_else(|| panic!("there is no `{name}`"));
    match &entry.server {
        Ok(server) => panic!("{name} was taken: {server:?}"),
        Err(problems) => problems,
    }
}

/// Asserts that a note of that kind contains the text.
pub fn noted(server: &Server, kind: Kind, text: &str) {
    let has = server.notes.iter().any(|note| note.kind == kind && note.text.contains(text));
    assert!(has, "no {} note with `{text}`: {:#?}", kind.as_str(), server.notes);
}
