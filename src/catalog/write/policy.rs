//! The first policies of an added server: it may be started as added, and nobody may call it.
//!
//! Invariant: no secret is permitted that the operator did not name or confirm.

use std::fmt::Write as _;

use crate::{
    report::brief,
    server::{Run, Secret, Server},
};

/// Name of the file of the policies.
#[must_use]
pub fn file_name(server: &str) -> String {
    format!("server-{server}.cedar")
}

/// The policies. They only permit the launch of this image with these deviations, each secret that
/// the operator named or confirmed, and the egress to a remote server. Permits of other secrets are
/// comments.
#[must_use]
pub fn policy(server: &Server) -> String {
    let name = &server.name;
    let mut text = format!(
        "// The server `{name}`, as it was added: it may be started. Who may call it is yours to say.\n"
    );
    match &server.run {
        Run::Image { image, .. } => {
            let by = image
                .content()
                .map(|digest| format!("resource has digest && resource.digest == \"{digest}\""));
            launch(&mut text, server, by.into_iter());
        }
        Run::Command { .. } => launch(&mut text, server, std::iter::empty()),
        Run::Remote { url, .. } => {
            launch(&mut text, server, std::iter::empty());
            if let Some((host, port)) = destination(url) {
                let _ = write!(
                    text,
                    "\n@id(\"{name}.url\")\npermit (\n  principal == Portcullis::Server::\"{name}\",\n  action == \
                     Portcullis::Action::\"egress\",\n  resource\n)\nwhen {{ resource.name == \"{host}\" && resource.port == {port} }};\n"
                );
            }
        }
    }
    egress(&mut text, server);
    for (secret, reference) in server.references() {
        deliver_secret(&mut text, name, secret, reference);
    }
    if let Some(only) = &server.only {
        left_on(&mut text, name, only);
    }
    text.push_str(&example(server));
    text
}

/// The permit of one secret, as a comment unless the operator named or confirmed the reference.
fn deliver_secret(text: &mut String, server: &str, secret: &str, reference: &Secret) {
    let secret = escaped(secret);
    let permit = format!(
        "@id(\"{server}.secret.{secret}\")\npermit (\n  principal == Portcullis::Server::\"{server}\",\n  action == \
         Portcullis::Action::\"deliver_secret\",\n  resource == Portcullis::Secret::\"{server}/{secret}\"\n);\n",
    );
    text.push('\n');
    if reference.permitted {
        text.push_str(&permit);
        return;
    }
    text.push_str("// This secret was not named or confirmed. To permit it, remove the slashes:\n");
    for line in permit.lines() {
        let _ = writeln!(text, "// {line}");
    }
}

fn launch(text: &mut String, server: &Server, more: impl Iterator<Item = String>) {
    let name = &server.name;
    let mut deviations = Vec::new();
    if !server.mounts.is_empty() {
        deviations.push("\"mounts\"");
    }
    if server.user.is_some() {
        deviations.push("\"hardening.user\"");
    }
    if !server.egress.is_empty() {
        deviations.push("\"egress\"");
    }
    if server.fetches {
        deviations.push("\"hardening.exec-tmp\"");
        deviations.push("\"resources.tmp-mib\"");
    }
    let bound = if deviations.is_empty() {
        "resource.deviations.isEmpty()".to_owned()
    } else {
        format!("[{}].containsAll(resource.deviations)", deviations.join(", "))
    };
    let conditions: Vec<String> = more.chain([bound]).collect();
    let _ = write!(
        text,
        "\n@id(\"{name}.launch\")\npermit (\n  principal == Portcullis::Server::\"{name}\",\n  action == \
         Portcullis::Action::\"launch\",\n  resource\n)\nwhen\n{{\n  {}\n}};\n",
        conditions.join(" &&\n  "),
    );
}

/// The hosts that the description says it needs, one permit each.
fn egress(text: &mut String, server: &Server) {
    let name = &server.name;
    let hosts: Vec<String> = server
        .egress
        .iter()
        .filter_map(|entry| {
            let destination =
                entry.split_once("://").map_or(entry.as_str(), |(_, destination)| destination);
            let (host, port) = destination.rsplit_once(':')?;
            let host = host.trim_matches(['[', ']']);
            let named = match host.strip_prefix("*.") {
                Some(top) => format!("resource.name like \"*.{}\"", escaped(top)),
                None => format!("resource.name == \"{}\"", escaped(host)),
            };
            Some(format!("({named} && resource.port == {port})"))
        })
        .collect();
    if !hosts.is_empty() {
        let _ = write!(
            text,
            "\n@id(\"{name}.egress\")\npermit (\n  principal == Portcullis::Server::\"{name}\",\n  action == \
             Portcullis::Action::\"egress\",\n  resource\n)\nwhen\n{{\n  {}\n}};\n",
            hosts.join(" ||\n  ")
        );
    }
}

/// Forbids all tools except the enabled ones, whether known or not.
fn left_on(text: &mut String, name: &str, only: &[String]) {
    text.push('\n');
    text.push_str(&tools_left_on(&left_on_id(name), name, only));
}

/// Id of the policy that limits a server to its enabled tools.
#[must_use]
pub fn left_on_id(server: &str) -> String {
    format!("{server}.tools-left-on")
}

/// A policy that forbids all tools of a server except those.
#[must_use]
pub fn tools_left_on(id: &str, server: &str, only: &[String]) -> String {
    let mut text = format!(
        "@id(\"{id}\")\n@reason(\"the tool is switched off\")\nforbid (\n  principal,\n  action == \
         Portcullis::Action::\"call_tool\",\n  resource in Portcullis::Server::\"{server}\"\n)"
    );
    if only.is_empty() {
        text.push_str(";\n");
        return text;
    }
    let tools: Vec<String> = only
        .iter()
        .map(|tool| format!("Portcullis::Tool::\"{server}/{}\"", escaped(tool)))
        .collect();
    let _ = write!(text, "\nunless\n{{\n  resource in\n    [{}]\n}};\n", tools.join(",\n     "));
    text
}

/// An example of a permit, as a comment.
fn example(server: &Server) -> String {
    let name = &server.name;
    let mut text = format!(
        "\n// To let a group use it (`portcullis policy new read-only --group readers --server {name}` writes more):\n\
         //\n// permit (\n//   principal in Portcullis::Group::\"readers\",\n//   action == Portcullis::Action::\"call_tool\",\n"
    );
    let tools = server
        .tools
        .iter()
        .take(40)
        .filter(|tool| server.only.as_ref().is_none_or(|only| only.contains(&tool.name)));
    let tools: Vec<String> = tools.map(|tool| brief(&tool.name)).collect();
    if tools.is_empty() {
        let _ = writeln!(text, "//   resource in Portcullis::Server::\"{name}\"\n// );");
    } else {
        let _ = writeln!(text, "//   resource == Portcullis::Tool::\"{name}/{}\"\n// );", tools[0]);
        let _ = writeln!(text, "//\n// It is said to have: {}.", tools.join(", "));
    }
    text
}

/// Host and port of a URL, as policies see them.
fn destination(url: &str) -> Option<(String, u16)> {
    let url = url::Url::parse(url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']);
    Some((escaped(host), url.port_or_known_default()?))
}

/// A text escaped for Cedar's quotes.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c.is_control() || !c.is_ascii() => {
                format!("\\u{{{:x}}}", u32::from(c)).chars().collect()
            }
            c => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::server::{Tool, Transport};

    fn server(name: &str, header: &str) -> Server {
        let secret = Secret { permitted: true, ..Secret::of("env:X".into()) };
        Server {
            name: name.to_owned(),
            original: name.to_owned(),
            title: None,
            description: None,
            run: Run::Remote {
                url: "https://mcp.example.com/x".into(),
                transport: Transport::Auto,
                headers: [(header.to_owned(), secret.clone()), ("X-Key".to_owned(), secret)].into(),
            },
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            mounts: vec![],
            egress: vec!["*.example.com:443".into(), "tcp://[::1]:5432".into()],
            user: None,
            fetches: false,
            stays: false,
            tools: vec![Tool { name: "a\n}\" permit".into(), description: None }],
            only: Some(vec!["a\"\n);permit(principal,action,resource);//".into()]),
            notes: vec![],
        }
    }

    /// Policies with equal ids would invalidate the whole set, and foreign authors choose the
    /// names.
    #[test]
    fn policy_ids_never_collide() {
        let texts =
            [server("a", "launch"), server("a-secret", "X_Key")].map(|server| policy(&server));
        let all: Vec<&str> = texts
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| line.starts_with("@id("))
            .collect();
        let distinct: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
        assert_eq!(all.len(), 12);
    }

    #[test]
    fn unconfirmed_secret_becomes_a_comment() {
        let mut server = server("a", "X\n@id(\"x\")\npermit (principal, action, resource);");
        for (_, secret) in server.references_mut() {
            secret.permitted = false;
        }
        let text = policy(&server);
        let permitted: Vec<&str> = text.lines().filter(|line| !line.starts_with("//")).collect();
        assert!(!permitted.join("\n").contains("deliver_secret"), "{text}");
        assert_eq!(text.matches("// permit (").count(), 3, "{text}");
        assert_eq!(permitted.iter().filter(|line| line.starts_with("permit (")).count(), 3);
    }

    #[test]
    fn foreign_text_stays_quoted() {
        let text = policy(&server("a", "b"));
        for line in text.lines().filter(|line| line.contains("permit(principal,action,resource)")) {
            assert!(line.contains("\\\"") && line.contains("\\u{a}"), "{line}");
        }
        assert!(
            text.contains("resource.name like \"*.example.com\" && resource.port == 443"),
            "{text}"
        );
        assert!(text.contains("resource.name == \"::1\" && resource.port == 5432"), "{text}");
        // As in the request for a URL's host: without brackets.
        assert_eq!(
            destination("https://[2606:4700::1111]/mcp"),
            Some(("2606:4700::1111".to_owned(), 443))
        );
    }
}
