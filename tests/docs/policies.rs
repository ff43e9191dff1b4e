//! Cedar, and case files of `policy test`.

use std::{fs, path::PathBuf};

use crate::pages::{Block, Page};

/// Tools of the servers in the docs, for policies about typed tools.
const TOOLS: &str = r#"[{"name": "add_note", "inputSchema": {"type": "object",
    "properties": {"name": {"type": "string"}, "text": {"type": "string"}}, "required": ["name"]}}]"#;

/// Loads policies as the proxy loads them.
pub fn check(text: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.cedar"), text).unwrap();
    fs::write(folder.path().join("notes.tools.json"), TOOLS).unwrap();
    let engine = portcullis_policy::Engine::load(&[PathBuf::from(".")], folder.path());
    engine.map(drop).map_err(|diagnostics| diagnostics.to_string())
}

/// Runs a case file on the policies that stand before it on its page.
pub fn check_cases(page: &Page, block: &Block) -> Result<(), String> {
    let before = |other: &&Block| other.language == "cedar" && other.line < block.line;
    let policies: String = page.blocks.iter().filter(before).map(|block| &*block.text).collect();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.cedar"), policies).unwrap();
    fs::write(folder.path().join("p.test.yaml"), &block.text).unwrap();
    let report = portcullis_policy_tools::run_cases(&[PathBuf::from(".")], folder.path(), None);
    if let Some(finding) = report.findings.first() {
        return Err(finding.to_string());
    }
    match report.cases.iter().find(|case| !case.passed) {
        Some(case) => Err(format!("`{}` does not pass", case.name)),
        None if report.cases.is_empty() => Err("there is no case in it".into()),
        None => Ok(()),
    }
}

/// Checks the name of an entity or of an action, such as `Portcullis::Action::"connect"`.
pub fn check_entity(text: &str) -> Result<(), String> {
    let Some((kind, _)) = text.split_once("::\"") else {
        return check(&format!("permit (principal is {text}, action, resource);"))
            .or_else(|_| check(&format!("permit (principal, action, resource is {text});")));
    };
    if kind.ends_with("::Action") {
        return check(&format!("permit (principal, action in {text}, resource);"))
            .or_else(|_| check(&format!("permit (principal, action == {text}, resource);")));
    }
    let forms = [
        "principal == X, action, resource",
        "principal in X, action, resource",
        "principal, action, resource == X",
        "principal, action, resource in X",
    ];
    let mut outcomes =
        forms.iter().map(|form| check(&format!("permit ({});", form.replace('X', text))));
    match outcomes.any(|outcome| outcome.is_ok()) {
        true => Ok(()),
        false => Err("no policy can speak of it".into()),
    }
}

/// Checks an annotation, such as `@approve("why")`.
pub fn check_annotation(text: &str) -> Result<(), String> {
    let name = text.split('(').next().unwrap_or_default();
    // Without a value, the name alone counts; each takes one of these.
    let values: &[&str] = match text.contains('(') {
        true => &[""],
        false => &[
            "(\"a\")",
            "(\"10/1m\")",
            "(\"/a\")",
            "(\"arguments\")",
            "(\"shadow\")",
            "(\"refuse\")",
        ],
    };
    let mut last = Err(String::new());
    for value in values {
        let annotated = text.replace('…', "a") + value;
        for kind in ["permit", "forbid"] {
            last = check(&format!(
                "{annotated}\n{kind} (principal, action == Portcullis::Action::\"call_tool\", resource);"
            ));
            if last.is_ok() {
                return last;
            }
        }
    }
    last.map_err(|why| format!("{name}: {why}"))
}

/// Whether the Cedar schema has this attribute, action or type.
pub fn has_word(word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    portcullis_policy::SCHEMA.split(|c| !is_part(c)).any(|part| part == word)
}

#[test]
fn names_outside_the_schema_are_found() {
    assert!(check("permit (principal, action == Portcullis::Action::\"fly\", resource);").is_err());
    assert!(check("@aprove(\"x\")\npermit (principal, action, resource);").is_err());
    assert!(check_annotation("@aprove").is_err());
    assert!(check_annotation("@rate").is_ok());
    assert!(check_entity("Portcullis::Action::\"fly\"").is_err());
    assert!(check_entity("Portcullis::Robot").is_err());
    assert!(check_entity("Portcullis::Local").is_ok());
}
