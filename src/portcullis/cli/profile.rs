//! `portcullis profile`: named sets of servers.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{
    Context, Exit, Usage,
    adding::{Offer, Said, changed, still_off, take},
    catalog::{Fetched, Workspace, file, only_one, pushed},
    config_errors::Wrong,
};
use portcullis_catalog::{
    PROFILE, brief,
    lock::same_origin,
    member, profile as made,
    profile_file::{NoProfile, Profile, Settings},
    read,
    write::{Change, left_on_id},
};
use portcullis_config::Loaded;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::config::Server;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the profiles in the config's folder
    Ls,
    /// Show the servers of a profile
    Show {
        /// The profile's name
        name: String,
    },
    /// Create or overwrite a profile of servers in the config
    Create {
        /// The profile's name
        name: String,
        /// A server of the config; repeatable
        #[arg(long = "server", value_name = "SERVER", required = true)]
        servers: Vec<ServerName>,
        /// A title, for people
        #[arg(long)]
        title: Option<String>,
        #[command(flatten)]
        settings: Set,
    },
    /// Export a profile in Docker's format (JSON or YAML), without secret values and folders
    Export {
        /// The profile's name
        name: String,
        /// The file. Default: standard output
        file: Option<PathBuf>,
    },
    /// Import a profile in Docker's format: adds its servers to the config, and the profile
    Import {
        /// The file
        file: PathBuf,
        /// Local name. Default: the profile's own name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        said: Said,
    },
    /// Push a profile to an OCI registry
    Push {
        /// The profile's name
        name: String,
        /// The artifact: `HOST/NAME:TAG`
        reference: String,
    },
    /// Pull a profile from an OCI registry, and import it
    Pull {
        /// The artifact: `HOST/NAME:TAG` or `HOST/NAME@sha256:…`
        reference: String,
        /// Local name. Default: the profile's own name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        said: Said,
    },
}

/// What is otherwise with servers while they run for a profile.
#[derive(Debug, clap::Args)]
struct Set {
    /// Enable only this tool of the server, by the server's own name for it; repeatable
    #[arg(long = "tool", value_name = "SERVER/TOOL")]
    tools: Vec<String>,
    /// Override the value of a variable in the server's `env`; repeatable
    #[arg(long = "env", value_name = "SERVER/NAME=VALUE")]
    env: Vec<String>,
    /// Override the reference of a secret or header of the server; repeatable
    #[arg(long = "secret", value_name = "SERVER/NAME=REFERENCE")]
    secrets: Vec<String>,
}

impl Set {
    /// It by server.
    fn by_server(&self) -> Result<BTreeMap<String, Settings>, Usage> {
        let mut all: BTreeMap<String, Settings> = BTreeMap::new();
        let wrong = |key: &str, form: &str| Usage(format!("write `--{key} {form}`"));
        for tool in &self.tools {
            let parts = tool.split_once('/').filter(|(_, tool)| !tool.is_empty());
            let (server, tool) = parts.ok_or_else(|| wrong("tool", "SERVER/TOOL"))?;
            let settings = all.entry(server.to_owned()).or_default();
            settings.tools.get_or_insert_default().push(tool.to_owned());
        }
        // What was written is not repeated: it may be the secret.
        for (key, form, given) in [
            ("env", "SERVER/NAME=VALUE", &self.env),
            ("secret", "SERVER/NAME=REFERENCE", &self.secrets),
        ] {
            for text in given {
                let parts = text.split_once('=').and_then(|(place, value)| {
                    let (server, name) = place.split_once('/')?;
                    Some((server, name, value))
                });
                let (server, name, value) = parts.ok_or_else(|| wrong(key, form))?;
                let settings = all.entry(server.to_owned()).or_default();
                let table = if key == "env" { &mut settings.env } else { &mut settings.secrets };
                table.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(all)
    }
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let mut house = Workspace::open(ctx)?;
    match args.verb {
        Verb::Ls => ls(ctx, &house),
        Verb::Show { name } => show(ctx, &house, &name),
        Verb::Create { name, servers, title, settings } => {
            create(ctx, &house, &name, servers, title, &settings)
        }
        Verb::Export { name, file } => export(ctx, &house, &name, file),
        Verb::Import { file: path, name, said } => {
            let fetched = file(&path)?;
            let source = house.place(&path);
            import(ctx, &mut house, fetched, &source, name, &said).await
        }
        Verb::Push { name, reference } => {
            let content = content(ctx, &house, &name)?;
            let digest = {
                let _progress = ctx.progress(format!("pushing {reference}"));
                house.push(&reference, PROFILE, &content).await?
            };
            pushed(ctx, &reference, &digest)
        }
        Verb::Pull { reference, name, said } => {
            let fetched = {
                let _progress = ctx.progress(format!("pulling {reference}"));
                house.artifact(&reference, &[PROFILE]).await?
            };
            import(ctx, &mut house, fetched, &format!("oci://{reference}"), name, &said).await
        }
    }
}

fn ls(ctx: &Context, house: &Workspace) -> anyhow::Result<Exit> {
    let mut rows = Vec::new();
    for name in Profile::all(&house.base)? {
        let profile = Profile::read(&house.base, &name)?;
        rows.push((name, profile));
    }
    if ctx.is_json() {
        let all: serde_json::Map<String, Value> =
            rows.into_iter().map(|(name, profile)| (name, json!(profile))).collect();
        ctx.json(&all)?;
    } else {
        let rows = rows.into_iter().map(|(name, profile)| {
            [name, profile.servers.join(", "), profile.title.unwrap_or_default()]
        });
        ctx.table(&["NAME", "SERVERS", "TITLE"], rows)?;
    }
    Ok(Exit::Ok)
}

fn show(ctx: &Context, house: &Workspace, name: &str) -> anyhow::Result<Exit> {
    let profile = Profile::read(&house.base, name)?;
    if ctx.is_json() {
        ctx.json(&profile)?;
        return Ok(Exit::Ok);
    }
    let loaded = ctx.load()?;
    let rows = profile.servers.iter().map(|name| {
        let settings = profile.settings.get(name);
        let tools = settings.and_then(|settings| settings.tools.as_ref());
        let tools = tools.map_or("all".to_owned(), |tools| tools.join(", "));
        let otherwise = settings.map_or(String::new(), |settings| {
            let names = settings.env.keys().chain(settings.secrets.keys());
            names.map(String::as_str).collect::<Vec<_>>().join(", ")
        });
        let server = loaded.config.servers.iter().find(|(known, _)| known.as_str() == name);
        let what = server.map_or("(not in the config)".to_owned(), |(_, server)| {
            let program = server.command.as_ref().and_then(|command| command.first());
            let what = server.image.as_ref().or(server.url.as_ref()).or(program);
            what.cloned().unwrap_or_default()
        });
        [name.clone(), what, tools, otherwise]
    });
    ctx.table(&["SERVER", "WHAT IT IS", "TOOLS LEFT ON", "OTHERWISE"], rows)?;
    Ok(Exit::Ok)
}

fn create(
    ctx: &Context,
    house: &Workspace,
    name: &str,
    servers: Vec<ServerName>,
    title: Option<String>,
    settings: &Set,
) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let mut profile = Profile::of(servers.iter().map(ToString::to_string).collect());
    profile.title = title;
    profile.settings = settings.by_server()?;
    if let Some(server) = profile.settings.keys().find(|name| !profile.servers.contains(name)) {
        return Err(Usage(format!("`{}` is none of the profile's servers", brief(server))).into());
    }
    for name in &servers {
        dressed(&loaded, &profile, name.as_str()).with_context(|| "no profile was made")?;
    }
    let there = profile.write(&house.base, name)?;
    let verb = if there { "replaced" } else { "made" };
    ctx.note(format_args!(
        "{verb} the profile `{name}`: `portcullis run --profile {name}` runs its servers alone"
    ));
    unlisted(ctx, &loaded, &profile);
    Ok(Exit::Ok)
}

/// A server of the config as it is for a profile.
///
/// # Errors
/// Where the config has no such server, or nothing in the place of which the profile says something.
fn dressed<'a>(
    loaded: &'a Loaded,
    profile: &Profile,
    name: &str,
) -> anyhow::Result<(&'a ServerName, Server)> {
    let known = loaded.config.servers.iter().find(|(known, _)| known.as_str() == name);
    let Some((known, server)) = known else {
        bail!("there is no server `{name}` in {}", loaded.path.display());
    };
    let mut server = server.clone();
    let Some(settings) = profile.settings.get(name) else { return Ok((known, server)) };
    for (variable, value) in &settings.env {
        let shown = brief(variable);
        let Some(there) = server.env.get_mut(variable) else {
            bail!(
                "`{name}` has no variable `{shown}` in `env`, in the place of which another value could be"
            );
        };
        anyhow::ensure!(!value.contains('\0'), "`{shown}` of `{name}` has a NUL in it");
        there.clone_from(value);
        let alone = [(variable.clone(), value.clone())].into();
        if !loaded.literals(known, &Server { env: alone, ..Server::default() }).is_empty() {
            bail!(
                "`{shown}` of `{name}` looks like a secret, and profiles are for others to read: have it under \
                   `secrets` in the config"
            );
        }
    }
    for (secret, from) in &settings.secrets {
        let shown = brief(secret);
        let secrets = server.secrets.get_mut(secret).map(|secret| &mut secret.from);
        let headers = server.headers.get_mut(secret).map(|header| &mut header.from);
        let Some(there) = secrets.or(headers) else {
            bail!("`{name}` has no secret and no header `{shown}`");
        };
        let Ok(source) = from.parse::<portcullis_vault::Source>() else {
            bail!(
                "what `{shown}` of `{name}` comes from is no reference (docs/concepts/secrets.md has them all)"
            );
        };
        *there = Some(source.relative_to(&loaded.base).to_string());
    }
    Ok((known, server))
}

/// Leaves of a config the servers of a profile alone, as they are for it.
///
/// # Errors
/// Where there is no such profile, or it says something of what the config has not.
pub(super) fn narrow(loaded: &mut Loaded, name: &str) -> anyhow::Result<()> {
    let profile = Profile::read(&loaded.base, name)?;
    let mut kept = BTreeMap::new();
    for server in &profile.servers {
        let (known, server) = dressed(loaded, &profile, server)
            .with_context(|| format!("the profile `{name}` can't be run"))?;
        kept.insert(known.clone(), server);
    }
    let aside = &mut loaded.aside;
    loaded.config.servers.retain(|name, server| match kept.remove(name) {
        Some(dressed) => {
            aside.push(std::mem::replace(server, dressed));
            true
        }
        None => {
            aside.push(server.clone());
            false
        }
    });
    loaded.profile = Some(name.to_owned());
    Ok(())
}

/// Tells of servers of which policies leave on only some tools and the profile has no list: whoever takes
/// the profile does not take the policies.
fn unlisted(ctx: &Context, loaded: &Loaded, profile: &Profile) {
    // Where the policies can't be read, `check` says why.
    let texts = portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir)
        .texts(&loaded.base)
        .unwrap_or_default();
    for server in &profile.servers {
        let listed = profile.settings.get(server).is_some_and(|set| set.tools.is_some());
        let id = left_on_id(server);
        let policy = format!("@id(\"{id}\")");
        if !listed && let Some((file, _)) = texts.iter().find(|(_, text)| text.contains(&policy)) {
            ctx.note(format_args!(
                "the profile has no list of the tools of `{server}`, and the policy `{id}` ({}) leaves only \
                 some on: whoever takes the profile has all of them on; overwrite it with `--tool {server}/TOOL` \
                 for each",
                file.display()
            ));
        }
    }
}

/// A profile in the form of others.
fn content(ctx: &Context, house: &Workspace, name: &str) -> anyhow::Result<Value> {
    let profile = Profile::read(&house.base, name)?;
    let loaded = ctx.load()?;
    let plain = serde_json::to_value(Server::default())?;
    let mut servers = Vec::new();
    let mut wrong = Wrong::of(&loaded);
    let mut notes = Vec::new();
    for server in &profile.servers {
        let (known, entry) = dressed(&loaded, &profile, server)
            .with_context(|| format!("the profile `{name}` can't be written for others"))?;
        wrong.literals(known, &entry);
        let settings = profile.settings.get(server);
        let only = settings.and_then(|settings| settings.tools.as_deref());
        let (member, told) = member(server, &serde_json::to_value(&entry)?, &plain, only)?;
        notes.extend(told.into_iter().map(|what| format!("left out of `{server}`: {what}")));
        servers.push(member);
    }
    wrong.end()?;
    for note in notes {
        ctx.note(note);
    }
    unlisted(ctx, &loaded, &profile);
    Ok(made(name, profile.title.as_deref().unwrap_or(name), servers))
}

fn export(
    ctx: &Context,
    house: &Workspace,
    name: &str,
    file: Option<PathBuf>,
) -> anyhow::Result<Exit> {
    let content = content(ctx, house, name)?;
    let Some(path) = file else {
        ctx.json(&content)?;
        return Ok(Exit::Ok);
    };
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => serde_json::to_string_pretty(&content)?,
        Some("yaml" | "yml") => serde_yaml_ng::to_string(&content)?,
        _ => return Err(Usage("the file's name ends in `.json` or `.yaml`".into()).into()),
    };
    portcullis_foundation::atomic_file::replace(&path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    ctx.note(format_args!("the profile `{name}` is in {}", path.display()));
    Ok(Exit::Ok)
}

async fn import(
    ctx: &Context,
    house: &mut Workspace,
    fetched: Fetched,
    source: &str,
    name: Option<String>,
    said: &Said,
) -> anyhow::Result<Exit> {
    let single = only_one(&fetched.text);
    let found = read(&fetched.text, &said.options(single.as_deref())?)
        .map_err(|problem| anyhow::anyhow!("{}: {problem}", fetched.name))?;
    if found.format != "Docker profile" {
        bail!(
            "{} is no profile but a {}: `server import` takes its servers",
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
    let old = replaceable(house, &name, chosen, source, said)?;
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
        in_full: false,
    };
    let dry = said.is_dry();
    let (servers, exit) = take(ctx, house, offer, said).await?;
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
            // What is not taken yet has nothing that could be held against it.
            let loaded = if dry { None } else { Some(ctx.load()?) };
            changes = keep(old, &mut profile, &offered, loaded.as_ref());
        }
        if !dry {
            profile.write(&house.base, &name)?;
        }
        let verb = match (old.is_some(), dry) {
            (true, false) => "replaced",
            (true, true) => "would replace",
            (false, false) => "made",
            (false, true) => "would make",
        };
        ctx.note(format_args!("{verb} the profile `{name}`"));
        for change in changes.iter().filter(|_| !ctx.is_json()) {
            changed(ctx, change)?;
        }
    }
    Ok(exit)
}

/// The profile of that name, if there is one, and may be replaced by one from that source: it came from
/// there itself, or the operator chose the name. Otherwise whoever wrote the new one chose it.
fn replaceable(
    house: &Workspace,
    name: &str,
    chosen: bool,
    source: &str,
    said: &Said,
) -> anyhow::Result<Option<Profile>> {
    let old = match Profile::read(&house.base, name) {
        Err(NoProfile::Absent { .. }) => return Ok(None),
        old => old?,
    };
    if !said.replaces() {
        bail!(
            "there is a profile `{name}` already: choose another name with `--name`, or say `--replace`"
        );
    }
    let came = match old.source.as_deref() {
        Some(came) if same_origin(came, source) => return Ok(Some(old)),
        Some(came) => format!("came from {}", brief(came)),
        None => "is your own".to_owned(),
    };
    if !chosen {
        bail!(
            "there is a profile `{name}` already, which {came}: choose another name with `--name`, or say \
             `--name {name} --replace` if that one is to be replaced"
        );
    }
    Ok(Some(old))
}

/// Keeps what the operator said in a profile: values, references, and tools that are off. Servers that
/// were offered and refused stay in it, and what was said of those that were left out waits for them.
/// Tells what is otherwise. `loaded`: the config, where what it does not have any more is let go.
fn keep(
    old: &Profile,
    new: &mut Profile,
    offered: &[String],
    loaded: Option<&Loaded>,
) -> Vec<Change> {
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
    let change = |server: &String, was: bool| {
        let server = Some(server.clone());
        let (was, is) = if was { (server, None) } else { (None, server) };
        Change { key: "servers".to_owned(), was, is, taken: true }
    };
    changes.extend(
        old.servers.iter().filter(|one| !new.servers.contains(one)).map(|one| change(one, true)),
    );
    changes.extend(
        new.servers.iter().filter(|one| !old.servers.contains(one)).map(|one| change(one, false)),
    );
    let before = old.servers.iter().chain(&old.left_out);
    let again: Vec<&String> = before.filter(|one| new.servers.contains(one)).collect();
    for server in again {
        let mut was = old.settings.get(server).cloned().unwrap_or_default();
        let gone = loaded.map_or_else(Vec::new, |loaded| let_go(loaded, server, &mut was));
        changes.extend(gone.into_iter().map(|key| Change {
            key: format!("{server}: {key}"),
            was: Some("what the profile said".to_owned()),
            is: None,
            taken: true,
        }));
        let mut now = new.settings.remove(server).unwrap_or_default();
        let tools = still_off(&mut now.tools, was.tools.as_deref());
        changes.extend(
            tools.map(|change| Change { key: format!("{server}: {}", change.key), ..change }),
        );
        let now = Settings { tools: now.tools, ..was };
        if now != Settings::default() {
            new.settings.insert(server.clone(), now);
        }
    }
    changes
}

/// Lets go of values and references in the place of which the config has nothing any more: a profile
/// that has some can't be run. Tells which.
fn let_go(loaded: &Loaded, name: &str, settings: &mut Settings) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_config::protected_paths;
    use std::sync::Arc;

    use portcullis_runtime::{MountPolicy, process::Mount};

    #[test]
    fn what_a_profile_has_something_else_for_is_no_servers_either() {
        let folder = tempfile::tempdir().unwrap();
        for within in ["keys", "keys-dev", "keys-left", "plain"] {
            std::fs::create_dir(folder.path().join(within)).unwrap();
        }
        let text = "[servers.a]\ncommand = ['/bin/true']\nsecrets.KEY.from = 'file:keys/prod'\n\
            [servers.b]\ncommand = ['/bin/true']\nsecrets.KEY.from = 'file:keys-left/b'\n";
        let mut loaded =
            portcullis_config::parse(&folder.path().join("portcullis.toml"), text).unwrap();
        let mut profile = Profile::of(vec!["a".into()]);
        let secrets = [("KEY".to_owned(), "file:keys-dev/x".to_owned())].into();
        profile.settings.insert("a".into(), Settings { secrets, ..Settings::default() });
        profile.write(folder.path(), "dev").unwrap();
        narrow(&mut loaded, "dev").unwrap();
        let places = MountPolicy::default().with_own(Arc::new(protected_paths(&loaded)));
        for (source, refused) in
            [("keys", true), ("keys-dev", true), ("keys-left", true), ("plain", false)]
        {
            let source = folder.path().join(source);
            let mount = Mount { source, target: "/k".into(), writable: false };
            assert_eq!(places.check(&mount).is_err(), refused, "{mount:?}");
        }
    }
}
