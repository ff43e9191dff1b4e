//! Typed actions as text of a Cedar schema.

use std::fmt::Write as _;

use super::{
    super::SCHEMA,
    File, Tool,
    shape::{Record, Type},
};
use portcullis_protocol::names::ServerName;

/// The schema, with the typed actions at its end.
pub(super) fn schema<'t>(
    tools: impl IntoIterator<Item = (&'t File, &'t ServerName, Vec<&'t Tool>)>,
) -> String {
    let mut text = SCHEMA.trim_end().strip_suffix('}').unwrap_or(SCHEMA).to_owned();
    let members = circumstances();
    for (file, server, tools) in tools {
        let name = file.name.display().to_string();
        let _ = write!(text, "\n  // Tools of `{server}`, from {}.\n", name.escape_debug());
        for Tool { name, input } in tools {
            let id = format!("{server}/{name}");
            let _ = write!(
                text,
                "  action \"{}\" in [call_tool]\n    appliesTo {{ principal: [Client, Local, \
                 Anonymous], resource: [Tool], context: {{\n{members}      input: {},\n    }} }};\n",
                id.escape_debug(),
                record(input, 6),
            );
        }
    }
    text.push_str("}\n");
    text
}

/// The members of `Circumstances`, repeated in every typed action: Cedar has no syntax to extend a
/// record.
fn circumstances() -> String {
    let (_, rest) = SCHEMA.split_once("type Circumstances = {\n").unwrap_or_default();
    let (members, _) = rest.split_once("  };").unwrap_or_default();
    let code = |line: &str| line.split_once("//").map_or(line, |(code, _)| code).trim().to_owned();
    let lines = members.lines().map(code).filter(|line| !line.is_empty());
    lines.fold(String::new(), |text, line| text + "      " + &line + "\n")
}

/// A record; its last line is indented by `indent`.
pub(super) fn record(record: &Record, indent: usize) -> String {
    let mut text = "{".to_owned();
    let inner = indent + 2;
    for (name, member) in &record.members {
        let optional = if member.required { "" } else { "?" };
        let kind = kind(&member.kind, inner);
        let _ = write!(text, "\n{:inner$}\"{}\"{optional}: {kind},", "", name.escape_debug());
    }
    for (name, why) in &record.left_out {
        let _ = write!(text, "\n{:inner$}// no \"{}\": it {why}", "", name.escape_debug());
    }
    if text.len() > 1 {
        let _ = write!(text, "\n{:indent$}", "");
    }
    text + "}"
}

fn kind(kind: &Type, indent: usize) -> String {
    match kind {
        Type::Bool => "Bool".to_owned(),
        Type::Long => "Long".to_owned(),
        Type::Decimal => "decimal".to_owned(),
        Type::String => "String".to_owned(),
        Type::Set(element) => format!("Set<{}>", self::kind(element, indent)),
        Type::Record(inner) => record(inner, indent),
    }
}
