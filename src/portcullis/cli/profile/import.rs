//! `portcullis profile import` and `pull`: import a profile in Docker's format, and its servers.

use anyhow::bail;

use crate::cli::{
    Context, Exit, Usage,
    adding::{AddOptions, Offer, keep_disabled, take},
    catalog::{Fetched, Workspace, only_one},
};
use portcullis_catalog::{
    brief,
    lock::same_origin,
    profile_file::{NoProfile, Profile, Settings},
    read,
};
use portcullis_config::Loaded;

/// Imports a profile and its servers.
pub async fn run(
    ctx: &Context,
    workspace: &mut Workspace,
    fetched: Fetched,
    source: &str,
    name: Option<String>,
    add_options: &AddOptions,
) -> anyhow::Result<Exit> {
    let single = only_one(&fetched.text);
    let found = read(&fetched.text, &add_options.options(single.as_deref())?)
        .map_err(|problem| anyhow::anyhow!("{}: {problem}", fetched.name))?;
    if found.format != "Docker profile" {
        bail!(
            "{} is not a profile but a {}: `server import` takes its servers",
            fetched.name,
            found.format
        );
    }
    let id = portcullis_catalog::parse(&fetched.text)
        .ok()
        .and_then(|node| Some(node.get("id")?.text()?.to_owned()));
    let title = found.title;
    let chosen = name.is_some();
    let name = match name {
        Some(name) => name,
        None => portcullis_catalog::ours(id.as_deref().or(title.as_deref()).unwrap_or(""))
            .map_err(|error| Usage(error.to_string()))?,
    };
    let old = replaceable(workspace, &name, chosen, source, add_options)?;
    let digest = fetched.manifest.clone().unwrap_or_else(|| fetched.digest.clone());
    let offered: Vec<String> = found
        .servers
        .iter()
        .filter_map(|entry| match &entry.server {
            Ok(server) => Some(server.name.clone()),
            Err(_) => portcullis_catalog::ours(&entry.name).ok(),
        })
        .collect();
    let offer = Offer {
        entries: found.servers,
        source: source.to_owned(),
        digest: Some(digest),
        name: fetched.name,
        clients: None,
    };
    let dry = add_options.is_dry();
    let (servers, exit) = take(ctx, workspace, offer, add_options).await?;
    if !servers.is_empty() {
        let mut profile = Profile::of(servers.iter().map(|server| server.name.clone()).collect());
        let lists = servers.into_iter().filter_map(|server| {
            Some((server.name, Settings { tools: Some(server.only?), ..Settings::default() }))
        });
        profile.settings = lists.collect();
        profile.title = title;
        profile.source = Some(source.to_owned());
        let mut changes = Vec::new();
        if let Some(old) = &old {
            // In a dry run, the config lacks the new servers, so nothing is compared with it.
            let loaded = if dry { None } else { Some(ctx.load()?) };
            changes = keep(old, &mut profile, &offered, loaded.as_ref());
        }
        if !dry {
            profile.write(&workspace.base, &name)?;
        }
        let verb = match (old.is_some(), dry) {
            (true, false) => "replaced",
            (true, true) => "would replace",
            (false, false) => "made",
            (false, true) => "would make",
        };
        ctx.note(format_args!("{verb} the profile `{name}`"));
        for change in changes.iter().filter(|_| !ctx.is_json()) {
            ctx.line(format!("  {change}"))?;
        }
    }
    Ok(exit)
}

/// Existing profile of that name, if `source` may replace it: it came from the same source, or the
/// operator chose the name. Otherwise the author of the new profile chose the name.
fn replaceable(
    workspace: &Workspace,
    name: &str,
    chosen: bool,
    source: &str,
    add_options: &AddOptions,
) -> anyhow::Result<Option<Profile>> {
    let old = match Profile::read(&workspace.base, name) {
        Err(NoProfile::Absent { .. }) => return Ok(None),
        old => old?,
    };
    if !add_options.replaces() {
        bail!(
            "there is a profile `{name}` already: choose another name with `--name`, or say `--replace`"
        );
    }
    let origin = match old.source.as_deref() {
        Some(origin) if same_origin(origin, source) => return Ok(Some(old)),
        Some(origin) => format!("came from {}", brief(origin)),
        None => "is your own".to_owned(),
    };
    if !chosen {
        bail!(
            "there is a profile `{name}` already, which {origin}: choose another name with `--name`, or say \
             `--name {name} --replace` if that one is to be replaced"
        );
    }
    Ok(Some(old))
}

/// Keeps the operator's settings in a profile: values, references and disabled tools. Servers that
/// were offered and refused stay in it. Settings of servers that were left out are kept for them.
/// Settings that `loaded`, the config, no longer has are dropped. Returns the differences.
fn keep(
    old: &Profile,
    new: &mut Profile,
    offered: &[String],
    loaded: Option<&Loaded>,
) -> Vec<String> {
    let mut changes = Vec::new();
    let there = |name: &str| {
        let config = loaded.map(|loaded| &loaded.config.servers);
        config.is_none_or(|servers| servers.keys().any(|known| known.as_str() == name))
    };
    let refused = old.servers.iter().filter(|one| offered.contains(one) && there(one));
    let refused: Vec<String> = refused.filter(|one| !new.servers.contains(one)).cloned().collect();
    for server in refused {
        if let Some(was) = old.settings.get(&server) {
            new.settings.insert(server.clone(), was.clone());
        }
        new.servers.push(server);
    }
    for (server, was) in &old.settings {
        if !new.servers.contains(server) {
            new.left_out.push(server.clone());
            new.settings.insert(server.clone(), was.clone());
        }
    }
    let gone = old.servers.iter().filter(|one| !new.servers.contains(one));
    changes.extend(gone.map(|server| format!("servers: no longer {server}")));
    let added = new.servers.iter().filter(|one| !old.servers.contains(one));
    changes.extend(added.map(|server| format!("servers: also {server}")));
    let before = old.servers.iter().chain(&old.left_out);
    let again: Vec<&String> = before.filter(|one| new.servers.contains(one)).collect();
    for server in again {
        let mut was = old.settings.get(server).cloned().unwrap_or_default();
        let gone =
            loaded.map_or_else(Vec::new, |loaded| drop_unknown_settings(loaded, server, &mut was));
        let describe =
            |key| format!("{server}: {key}: no longer set, since the server does not have it");
        changes.extend(gone.into_iter().map(describe));
        let mut now = new.settings.remove(server).unwrap_or_default();
        let tools = keep_disabled(&mut now.tools, was.tools.as_deref());
        changes.extend(tools.map(|tools| format!("{server}: {tools}")));
        let now = Settings { tools: now.tools, ..was };
        if now != Settings::default() {
            new.settings.insert(server.clone(), now);
        }
    }
    changes
}

/// Drops values and references that the config no longer has: a profile with such settings cannot
/// run. Returns their keys.
fn drop_unknown_settings(loaded: &Loaded, name: &str, settings: &mut Settings) -> Vec<String> {
    let servers = &loaded.config.servers;
    let Some((_, server)) = servers.iter().find(|(known, _)| known.as_str() == name) else {
        return Vec::new();
    };
    let mut gone = Vec::new();
    settings.env.retain(|key, _| {
        let there = server.env.contains_key(key);
        gone.extend((!there).then(|| format!("env.{}", brief(key))));
        there
    });
    settings.secrets.retain(|key, _| {
        let there = server.secrets.contains_key(key) || server.headers.contains_key(key);
        gone.extend((!there).then(|| format!("secrets.{}", brief(key))));
        there
    });
    gone
}
