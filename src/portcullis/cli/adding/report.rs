//! Output about servers, before and after they are written.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use similar::TextDiff;

use super::{
    client_policy::{ClientPolicy, policies_of},
    planned_server::{PlannedServer, Policies, Replaced},
};
use crate::cli::Context;
use portcullis_catalog::{Delivery, DeliveryKind, Kind, Problem, Run, Server, quoted};

/// Stage of the import that the output describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not written, or not yet.
    Planned,
    /// Written.
    Written,
    /// Written, after it was shown and the operator confirmed it.
    Confirmed,
}

/// Prints the result of an offer. `from` is its source.
pub(super) fn print_report(
    ctx: &Context,
    from: &str,
    planned: &[PlannedServer],
    refused: &[(String, Vec<Problem>)],
    clients: Option<&ClientPolicy>,
    stage: Stage,
) -> anyhow::Result<()> {
    if ctx.is_json() {
        ctx.json(&data(from, planned, refused, stage))?;
        return Ok(());
    }
    if stage == Stage::Confirmed {
        for one in planned {
            ctx.line(head(one, stage))?;
            policies(ctx, one, stage)?;
        }
    } else {
        let shared = shared(planned);
        for one in planned {
            print_server(ctx, from, one, &shared, stage)?;
        }
        for ((kind, text), servers) in &shared {
            let servers: Vec<String> = servers.iter().map(|name| format!("`{name}`")).collect();
            ctx.line(format!("{} for {}: {text}", kind.as_str(), servers.join(", ")))?;
        }
        for (name, problems) in refused {
            ctx.note(format_args!("not added: `{name}`"));
            for problem in problems {
                let place =
                    problem.place.map_or(String::new(), |place| format!("{from}:{place}: "));
                ctx.note(format_args!("  {place}{problem}"));
            }
        }
    }
    if planned.iter().any(|one| matches!(one.policies, Policies::Nowhere)) {
        ctx.note(
            "policies are taken from a signed bundle, or from single files: no policy was written, so none of \
             these servers may be started yet",
        );
    }
    let mut new = planned.iter().filter(|one| one.replaced.is_none());
    if stage == Stage::Planned {
        return Ok(());
    }
    if let (Some(clients), Some(one)) =
        (clients, planned.iter().find(|one| one.has_client_policies()))
    {
        ctx.note(format_args!("{} may use it from now on", clients.clients()));
        if let Some(command) = clients.connects() {
            ctx.note(format_args!("Connect a client: `{command}`"));
        }
        ctx.note(format_args!("Start the proxy: `portcullis run`; list all tools of the server: `portcullis server tools {}`", one.server.name));
    } else if new.next().is_some() {
        ctx.note(
            "no client may call it yet: permit calls in policies of your own (`portcullis policy new`)",
        );
    }
    Ok(())
}

fn data(
    from: &str,
    planned: &[PlannedServer],
    refused: &[(String, Vec<Problem>)],
    stage: Stage,
) -> Value {
    let is_plan = stage == Stage::Planned;
    let planned: Vec<Value> = planned
        .iter()
        .map(|planned| {
            let (policy, stays) = match &planned.policies {
                Policies::Written { path, .. } => (Some(path).filter(|_| !is_plan), None),
                Policies::Changed(path, text) => {
                    (None, Some(json!({ "file": path, "instead-of": text })))
                }
                Policies::Nowhere | Policies::Same | Policies::There(_) => (None, None),
            };
            let deliveries: Vec<Delivery<'_>> = planned.server.deliveries().collect();
            let client_files = &planned.client_files;
            let client_policies: Vec<_> = policies_of(&client_files.new).map(|file| &file.path).collect();
            let elsewhere: Vec<_> = planned.elsewhere.iter().map(|(file, _)| file).collect();
            let tools = planned.replaced.as_ref().and_then(|replaced| replaced.tools.as_ref());
            json!({
                "server": planned.server, "lock": planned.locked, "policy": policy,
                "client-policies": client_policies,
                "replaced": planned.replaced.is_some(), "diff": differences(planned, from),
                "warnings": warnings(planned), "tools": tools, "changed-policy": stays,
                "deliveries": deliveries, "destination": planned.server.destination(), "other-policies": elsewhere,
            })
        })
        .collect();
    let refused: Vec<Value> = refused
        .iter()
        .map(|(name, problems)| json!({ "name": name, "problems": problems }))
        .collect();
    json!({ "added": planned, "refused": refused, "written": !is_plan })
}

/// Advice and facts that apply to several servers, with the names of the servers.
type Shared = BTreeMap<(Kind, String), BTreeSet<String>>;

fn shared(planned: &[PlannedServer]) -> Shared {
    let mut shared = Shared::new();
    for one in planned {
        for note in
            one.server.notes.iter().filter(|note| matches!(note.kind, Kind::Advice | Kind::Note))
        {
            let servers = shared.entry((note.kind, note.text.clone())).or_default();
            servers.insert(one.server.name.clone());
        }
    }
    shared.retain(|_, servers| servers.len() > 1);
    shared
}

/// One line about the result for a server.
fn head(planned: &PlannedServer, stage: Stage) -> String {
    let server = &planned.server;
    let what = match &server.run {
        Run::Image { image, .. } => format!("image {image}"),
        Run::Command { program, .. } => format!("program {program}"),
        Run::Remote { url, .. } => format!("server at {url}"),
    };
    let verb = match (&planned.replaced, stage) {
        (None, Stage::Planned) => "would add",
        (None, Stage::Written | Stage::Confirmed) => "added",
        (Some(_), Stage::Planned) => "would replace",
        (Some(_), Stage::Written | Stage::Confirmed) => "replaced",
    };
    format!("{verb} `{}`: {what}", server.name)
}

/// Prints an imported server.
fn print_server(
    ctx: &Context,
    from: &str,
    planned: &PlannedServer,
    shared: &Shared,
    stage: Stage,
) -> anyhow::Result<()> {
    let server = &planned.server;
    ctx.line(head(planned, stage))?;
    for line in differences(planned, from).lines() {
        ctx.line(format!("  {line}"))?;
    }
    for warning in warnings(planned) {
        ctx.line(format!("  warning: {warning}"))?;
    }
    if let Some(tools) = planned.replaced.as_ref().and_then(|replaced| replaced.tools.as_ref()) {
        ctx.line(format!("  {tools}"))?;
    }
    let arguments = match &server.run {
        Run::Image { arguments, .. } | Run::Command { arguments, .. } => arguments.as_slice(),
        Run::Remote { .. } => &[],
    };
    if !arguments.is_empty() {
        let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
        ctx.line(format!("  arguments  {}", words.join(" ")))?;
    }
    print_deliveries(ctx, planned)?;
    for (file, _) in &planned.elsewhere {
        ctx.line(format!("  note: {} has permits that hold for it already", file.display()))?;
    }
    for note in &server.notes {
        if shared.contains_key(&(note.kind, note.text.clone())) {
            continue;
        }
        let place = note.place.map_or(String::new(), |place| format!(" ({from}:{place})"));
        ctx.line(format!("  {}: {}{place}", note.kind.as_str(), note.text))?;
    }
    for variable in unset(server) {
        ctx.line(format!(
            "  must: set `{variable}` in the environment of the proxy; it is not set here"
        ))?;
    }
    if let Some(missing) = missing(server) {
        ctx.line(format!("  must: {missing}"))?;
    }
    policies(ctx, planned, stage)
}

/// Unified diffs between old and new texts: of the entry, and of policies that the operator edited.
fn differences(planned: &PlannedServer, from: &str) -> String {
    let entry = planned.replaced.as_ref().and_then(|replaced| replaced.entry.as_ref());
    let entry = entry.map(|entry| {
        let texts = TextDiff::from_lines(&entry.before, &entry.after);
        texts.unified_diff().header("the config", from).to_string()
    });
    let policies = match &planned.policies {
        Policies::Written { path, text, edited: Some(before) } => {
            let name = path.display().to_string();
            let texts = TextDiff::from_lines(before, text);
            Some(texts.unified_diff().header(&name, from).to_string())
        }
        _ => None,
    };
    entry.into_iter().chain(policies).collect()
}

/// Warnings about edits that the operator loses and about restrictions that the entry loosens.
fn warnings(planned: &PlannedServer) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(Replaced { entry: Some(entry), edited, .. }) = &planned.replaced {
        if *edited {
            all.push(
                "you wrote or edited the entry in the config: its lines with `-` are lost"
                    .to_owned(),
            );
        }
        all.extend(entry.warnings.iter().cloned());
    }
    if let Policies::Written { path, edited: Some(_), .. } = &planned.policies {
        let path = path.display();
        all.push(format!("you wrote or edited {path}: its lines with `-` are lost"));
    }
    all
}

/// Prints each value that a server receives, with its source and destination. A person confirms the
/// list, so nothing is truncated.
fn print_deliveries(ctx: &Context, planned: &PlannedServer) -> anyhow::Result<()> {
    let server = &planned.server;
    let to = server.destination().join(", ");
    for Delivery { kind, name, from, permitted, changes_what_runs } in server.deliveries() {
        let from = match kind {
            DeliveryKind::Variable => quoted(from),
            DeliveryKind::Header | DeliveryKind::Secret => from.to_owned(),
        };
        let open = match permitted {
            true => "",
            false if planned.perhaps.contains(name) => {
                "  (not confirmed; the policy that is there may permit it)"
            }
            false if planned.elsewhere.iter().any(|(_, secrets)| secrets.contains(name)) => {
                "  (not confirmed; another policy may permit it)"
            }
            false => "  (not permitted)",
        };
        let what = if changes_what_runs { "  (changes what the server runs)" } else { "" };
        ctx.line(format!("  {} {name}  <- {from}  -> {to}{open}{what}", kind.as_str()))?;
    }
    Ok(())
}

/// Prints the policies that would be written for a new server and its clients.
fn print_policy_texts(ctx: &Context, planned: &PlannedServer) -> anyhow::Result<()> {
    if !planned.has_client_policies() {
        return Ok(());
    }
    let start = match &planned.policies {
        Policies::Written { path, text, .. } => Some((path, text)),
        _ => None,
    };
    let clients = policies_of(&planned.client_files.new).map(|file| (&file.path, &file.text));
    for (path, text) in start.into_iter().chain(clients) {
        ctx.line(format!("  {}:", path.display()))?;
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with("//"));
        for line in lines {
            ctx.line(format!("    {line}"))?;
        }
    }
    Ok(())
}

/// Prints the result for a server's policies.
fn policies(ctx: &Context, planned: &PlannedServer, stage: Stage) -> anyhow::Result<()> {
    if stage == Stage::Planned {
        print_policy_texts(ctx, planned)?;
    } else {
        for file in policies_of(&planned.client_files.new) {
            ctx.line(format!("  policies: {}", file.path.display()))?;
        }
    }
    match &planned.policies {
        Policies::Written { path, .. } if stage != Stage::Planned => {
            ctx.line(format!("  policies: {}", path.display()))?;
        }
        Policies::Changed(path, text) => {
            ctx.line(format!(
                "  policies: {} is not as it was written, and stays as it is. `--overwrite-policies` puts this in \
                 its place:",
                path.display()
            ))?;
            for line in text.lines() {
                ctx.line(format!("    {line}").trim_end())?;
            }
        }
        Policies::Written { .. } | Policies::Same | Policies::Nowhere | Policies::There(_) => {}
    }
    let open: Vec<String> = planned.open().map(|(name, _)| format!("`{name}`")).collect();
    if !open.is_empty()
        && stage != Stage::Planned
        && matches!(planned.policies, Policies::Written { .. })
    {
        ctx.line(format!(
            "  must: let it have {}, or it does not start: remove the slashes before their permits in that file, or \
             name them with `--secret NAME=REFERENCE --replace={}`",
            open.join(", "),
            planned.server.name
        ))?;
    }
    Ok(())
}

/// Variables that a server's references name, that are not set here, and that no note mentions.
fn unset(server: &Server) -> BTreeSet<&str> {
    let variables = server.references().filter_map(|(_, secret)| secret.from.strip_prefix("env:"));
    let noted = |variable: &str| {
        let reference = format!("`env:{variable}`");
        server.notes.iter().any(|note| note.text.contains(&reference))
    };
    variables.filter(|variable| std::env::var_os(variable).is_none() && !noted(variable)).collect()
}

/// Remedy for a program that is missing on this machine.
fn missing(server: &Server) -> Option<String> {
    let Run::Command { program, .. } = &server.run else { return None };
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = program.contains('/')
        || std::env::split_paths(&folders).any(|folder| folder.join(program).is_file());
    let instead = match program.as_str() {
        "npx" | "uvx" | "uv" => {
            format!(", or repeat this with `--packages container --replace={}`", server.name)
        }
        _ => String::new(),
    };
    (!found).then(|| format!("`{program}` is not on the PATH here: install it{instead}"))
}
