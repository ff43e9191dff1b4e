//! Servers that others described, taken into the config: `server add`, `server import`, and profiles.
//!
//! Invariant: the config that is written passes the checks of `check`, or nothing is written. A
//! server that spoils it is left out, and said to be. What is taken in the place of something that is
//! there leaves what the operator wrote, and is of the same origin or named by the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    audit::record::{ImageDid, ImageDone},
    catalog::{
        Entry, Kind, Names, Options, Packages, Problem, Run, Server, brief,
        lock::{self, Lock, Locked, Meaning, replace, same_origin},
        set, settings, tool_lists,
        write::{self, Change, add, file_name, names, policy},
    },
    cli::{
        Context, Exit, Reports, Usage,
        catalog::{Fetched, House, file},
        server::{locking, not_locked},
    },
    config::{self, Config, Diagnostics, Loaded},
    upstream::images,
    vault::Source,
};

/// Bytes of what the lock file keeps of one server's description.
const MOST_KEPT: usize = 256 << 10;

/// What is said beside a reference or a file.
#[derive(Debug, clap::Args)]
pub(super) struct Said {
    /// A setting of the server's catalog; may be given several times. A value may be JSON
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Settings of several servers: a `config.yaml` of Docker's
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// The tools that are left on: a `tools.yaml` of Docker's
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Where a secret comes from, by the variable or header of the server, such as `TOKEN=env:MY_TOKEN`; of
    /// several servers, `SERVER/TOKEN=env:MY_TOKEN`
    #[arg(long = "secret", value_name = "[SERVER/]NAME=REFERENCE")]
    secrets: Vec<String>,
    /// How packages that npx or uvx would fetch run
    #[arg(long, value_enum, default_value_t = How::Process)]
    packages: How,
    /// Take servers again that came from the same place, tag and digest aside. `--replace=SERVER`: that
    /// server, wherever it came from; may be given several times
    #[arg(
        long,
        value_name = "SERVER",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    replace: Vec<String>,
    /// With `--replace`: write `server-NAME.cedar` anew also where it was changed by hand
    #[arg(long, requires = "replace")]
    overwrite_policies: bool,
    /// Take an image again that was moved on from
    #[arg(long)]
    back: bool,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum How {
    /// As a program of this machine, in the sandbox
    Process,
    /// In a container of the language's own image
    Container,
}

/// What is said of a secret: the server, if one is named, the variable or header, and the reference.
type SecretFrom<'a> = (Option<&'a str>, &'a str, &'a str);

impl Said {
    /// Whether nothing is to be written.
    pub fn is_dry(&self) -> bool {
        self.dry_run
    }

    /// Whether what came from the same place is taken again.
    pub fn replaces(&self) -> bool {
        self.replace.iter().any(String::is_empty)
    }

    /// Whether a server was named as one to take again.
    fn names(&self, server: &str) -> bool {
        self.replace.iter().any(|name| name == server)
    }

    /// Whether a server that is there may be taken again, from a source. `strayed`: it runs something
    /// else by now than was taken. `moved`: what it runs, and what else it would.
    fn may_replace(
        &self,
        server: &str,
        locked: Option<&Locked>,
        strayed: bool,
        moved: Option<&(String, String)>,
        source: &str,
    ) -> Result<(), String> {
        if self.names(server) {
            return Ok(());
        }
        let came = match locked.and_then(|locked| locked.source.as_deref()) {
            Some(came) if strayed => {
                format!("came from {} and runs something of yours by now", brief(came))
            }
            Some(came) if same_origin(came, source) => {
                let Some((was, is)) = moved else { return Ok(()) };
                return Err(format!(
                    "`{server}` runs {} and would run {}, with the references and folders that you gave it: if \
                     that is meant, say `--replace={server}`",
                    brief(was),
                    brief(is)
                ));
            }
            Some(came) => format!("came from {}", brief(came)),
            None => "was not taken from anywhere".to_owned(),
        };
        Err(format!(
            "the config has a server `{server}`, which {came}: it would become another's; if that is meant, \
             say `--replace={server}`"
        ))
    }

    /// The lists of tools that are left on.
    fn tool_lists(&self) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let Some(path) = &self.tools else { return Ok(BTreeMap::new()) };
        let fetched = file(path)?;
        tool_lists(&fetched.text).map_err(|problem| broken(&fetched, &problem))
    }

    fn secrets(&self) -> Result<Vec<SecretFrom<'_>>, Usage> {
        self.secrets
            .iter()
            .map(|text| {
                // What was written is not repeated: it may be the secret.
                let (place, from) = text
                    .split_once('=')
                    .filter(|(_, from)| from.parse::<Source>().is_ok())
                    .ok_or_else(|| {
                        let text = "write `--secret NAME=REFERENCE`, such as `env:VARIABLE`, `file:PATH` or \
                                    `vault:PATH#KEY` (docs/secrets.md has them all), never the value";
                        Usage(text.to_owned())
                    })?;
                let (server, name) = place
                    .rsplit_once('/')
                    .map_or((None, place), |(server, name)| (Some(server), name));
                Ok((server, name, from))
            })
            .collect()
    }

    /// What a reader is told of it. `server` is the server that settings without a name are of.
    pub fn options(&self, server: Option<&str>) -> anyhow::Result<Options> {
        let mut options = Options {
            packages: match self.packages {
                How::Process => Packages::Process,
                How::Container => Packages::Container,
            },
            ..Options::default()
        };
        if let Some(path) = &self.settings {
            let fetched = file(path)?;
            options.values =
                settings(&fetched.text).map_err(|problem| broken(&fetched, &problem))?;
        }
        options.only = self.tool_lists()?;
        for text in &self.set {
            let key = text.split('=').next().unwrap_or("");
            let named = server.or_else(|| key.split_once('.').map(|(server, _)| server));
            let Some(named) = named else {
                return Err(
                    Usage("of several servers, write `--set SERVER.KEY=VALUE`".to_owned()).into()
                );
            };
            set(&mut options.values, named, text).map_err(Usage)?;
        }
        for (of, name, from) in self.secrets()? {
            let Some(of) = of.or(server) else {
                let text = "of several servers, write `--secret SERVER/NAME=REFERENCE`: each would get it that \
                            asks for that name";
                return Err(Usage(text.to_owned()).into());
            };
            let secrets = options.secrets.entry(of.to_owned()).or_default();
            secrets.insert(name.to_owned(), from.to_owned());
        }
        Ok(options)
    }
}

fn broken(file: &Fetched, problem: &Problem) -> anyhow::Error {
    let place = problem.place.map_or(String::new(), |place| format!(":{place}"));
    anyhow::anyhow!("{}{place}: {problem}", file.name)
}

/// Servers to take, and whence they come.
pub(super) struct Offer {
    pub entries: Vec<Entry>,
    /// For the lock file.
    pub source: String,
    pub digest: Option<String>,
    /// For messages.
    pub name: String,
}

/// One that was taken.
struct Taken {
    server: Server,
    locked: Locked,
    /// What its image was until now.
    was: Option<String>,
    /// What is otherwise than it was. Nothing: it is new.
    changes: Option<Vec<Change>>,
    policies: Policies,
}

/// What becomes of a server's policies.
enum Policies {
    /// There is no folder for them.
    Nowhere,
    /// They are written.
    Written(PathBuf, String),
    /// They are what would be written.
    Same,
    /// Some that nobody wrote for it are there already, and stay.
    There(PathBuf),
    /// Somebody changed them, and they stay. With what would be written.
    Changed(PathBuf, String),
}

impl Policies {
    fn of(
        folder: Option<&Path>,
        server: &Server,
        locked: Option<&Locked>,
        said: &Said,
        again: bool,
    ) -> Self {
        let Some(folder) = folder else { return Self::Nowhere };
        let (path, text) = (folder.join(file_name(&server.name)), policy(server));
        let ours = locked.and_then(|locked| locked.policies.as_deref()).filter(|_| again);
        match (path.exists(), again) {
            (true, false) => return Self::There(path),
            // Who took them away may have meant it.
            (false, _) if !again || locked.is_none_or(|locked| locked.source.is_none()) => {
                return Self::Written(path, text);
            }
            _ => {}
        }
        // What can't be read is nothing that was written so.
        let there = std::fs::read(&path).unwrap_or_default();
        if there == text.as_bytes() {
            Self::Same
        } else if said.overwrite_policies || ours == Some(&*lock::digest(&there)) {
            Self::Written(path, text)
        } else {
            Self::Changed(path, text)
        }
    }

    fn digest(&self, server: &Server) -> Option<String> {
        match self {
            Self::Written(..) | Self::Same => Some(lock::digest(policy(server).as_bytes())),
            Self::Nowhere | Self::There(_) | Self::Changed(..) => None,
        }
    }
}

impl Taken {
    /// What is on record of it before it is locked: an image that was another, or none.
    fn locking(&self) -> Option<ImageDone> {
        let Run::Image { image, .. } = &self.server.run else { return None };
        let digest = self.locked.image_digest.clone()?;
        (self.was.as_deref() != Some(&*digest)).then_some(ImageDone {
            server: self.server.name.parse().ok()?,
            image: image.to_string(),
            digest,
            what: ImageDid::Locked { was: self.was.clone() },
        })
    }
}

/// Takes servers into the config. Tells those that were taken, and how it ended.
pub(super) async fn take(
    ctx: &Context,
    house: &mut House,
    offer: Offer,
    said: &Said,
) -> anyhow::Result<(Vec<Server>, Exit)> {
    let mut text = match std::fs::read_to_string(&ctx.config) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("cannot read {}", ctx.config.display()))?,
    };
    // A config that is wrong already is not ours to change.
    let before = config::parse(&ctx.config, &text).map_err(reports)?;
    let there = names(&text)?;
    let mut known = Names::of(there.iter().map(String::as_str));
    if let Some(name) = said.replace.iter().find(|name| !name.is_empty() && !there.contains(name)) {
        return Err(Usage(format!("the config has no server `{}` to replace", brief(name))).into());
    }
    let secrets = said.secrets()?;
    let offered = |name: &str| offer.entries.iter().any(|entry| entry.name == name);
    if let Some(name) = secrets.iter().find_map(|(server, ..)| server.filter(|name| !offered(name)))
    {
        return Err(Usage(format!(
            "`{}` of `--secret` is no server of {}",
            brief(name),
            offer.name
        ))
        .into());
    }
    let listed = said.tool_lists()?;
    let folder = policies_folder(&before.config, &house.base);
    let mut replaced = BTreeSet::new();
    let mut taken: Vec<Taken> = Vec::new();
    let mut refused: Vec<(String, Vec<Problem>)> = Vec::new();
    for entry in offer.entries {
        let mut server = match entry.server {
            Ok(server) => server,
            Err(problems) => {
                refused.push((entry.name, problems));
                continue;
            }
        };
        let again = (said.replaces() || said.names(&server.name)) && there.contains(&server.name);
        let problem = |text: String| Problem::at(entry.place, text);
        let old = house.lock.servers.get(&server.name).cloned();
        let mut asked = None;
        let unwritten = |error: write::Unwritten| problem(error.to_string());
        let outcome = async {
            if again {
                let words = old.as_ref().and_then(|old| old.said.as_ref());
                let strayed = words.map(|words| write::strayed(&text, &server.name, words));
                let strayed = strayed.transpose().map_err(unwritten)?.unwrap_or(false);
                let moved = write::moved(&text, &server).map_err(unwritten)?;
                let (old, moved) = (old.as_ref(), moved.as_ref());
                said.may_replace(&server.name, old, strayed, moved, &offer.source)
                    .map_err(problem)?;
                if !replaced.insert(server.name.clone()) {
                    return Err(problem(format!(
                        "there are two that would be `{}` here",
                        server.name
                    )));
                }
            } else {
                known.take(&server.name).map_err(|error| problem(error.to_string()))?;
            }
            let own = secrets.iter().filter(|(of, ..)| of.is_none_or(|of| of == server.original));
            if let Some((_, name, _)) =
                own.clone().find(|(_, name, from)| !asks_for(&server, name, from))
            {
                return Err(Problem::of(format!(
                    "`{}` of `--secret` is no secret and no header that `{}` asks for",
                    brief(name),
                    server.name
                )));
            }
            let named: BTreeSet<String> = own.map(|(.., from)| (*from).to_owned()).collect();
            asked = pin(ctx, house, &mut server).await?;
            onward(house, &server, said.back)?;
            let mut locked = Locked {
                said: Some(write::said(&server).map_err(unwritten)?),
                ..Locked::default()
            };
            let (added, changes) = if again {
                let before = old.as_ref().and_then(|old| old.said.as_ref());
                let mut done = write::again(&text, &server, before, &named).map_err(unwritten)?;
                untrue(&server, &mut done.server);
                server = done.server;
                locked.said = Some(done.said);
                if let Some(old) = &old
                    && !listed.contains_key(&server.original)
                {
                    done.changes.extend(still_off(&mut server.only, old.tools.as_deref()));
                }
                (done.text, Some(done.changes))
            } else {
                (add(&text, &server).map_err(unwritten)?, None)
            };
            // What the config's own checks find counts as ours.
            config::parse(&ctx.config, &added).map_err(|Diagnostics(found)| {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                problem(found.join("; "))
            })?;
            locked.tools.clone_from(&server.only);
            // The lock file is one for all servers.
            if kept(&locked) > MOST_KEPT {
                return Err(problem(format!(
                    "what is said of `{}` has more than {} KiB, too much for the lock file",
                    server.name,
                    MOST_KEPT >> 10
                )));
            }
            Ok::<_, Problem>((added, changes, locked))
        };
        match outcome.await {
            Ok((added, changes, locked)) => {
                text = added;
                let image_digest = match &server.run {
                    Run::Image { image, .. } => image.digest.clone(),
                    _ => None,
                };
                let policies = Policies::of(folder.as_deref(), &server, old.as_ref(), said, again);
                let locked = Locked {
                    source: Some(offer.source.clone()),
                    source_digest: offer.digest.clone(),
                    image: asked,
                    image_digest,
                    policies: policies.digest(&server),
                    ..locked
                };
                let was = until_now(house, &before.config, &server.name);
                taken.push(Taken { server, locked, was, changes, policies });
            }
            Err(problem) => refused.push((entry.name, vec![problem])),
        }
    }
    if !taken.is_empty() && !said.dry_run {
        // Before anything is written: what is bounded for each may be too much of all.
        let mut whole = house.lock.clone();
        let locked = taken.iter().map(|one| (one.server.name.clone(), one.locked.clone()));
        whole.servers.extend(locked);
        whole.text(&house.base)?;
        let moves: Vec<ImageDone> = taken.iter().filter_map(Taken::locking).collect();
        locking(&before, &moves).await?;
        if let Err(error) = write(house, folder.as_deref(), &taken) {
            for done in moves {
                not_locked(ctx, &before, done, &format!("{error:#}")).await;
            }
            return Err(error);
        }
        replace(&ctx.config, text.as_bytes())
            .with_context(|| format!("cannot write {}", ctx.config.display()))?;
        settle_said(house, &taken)?;
    }
    tell(ctx, &offer.name, &taken, &refused, said.dry_run)?;
    let exit = match (taken.is_empty(), refused.is_empty()) {
        (true, _) => Exit::Failure,
        (false, true) => Exit::Ok,
        (false, false) => Exit::Findings,
    };
    Ok((taken.into_iter().map(|taken| taken.server).collect(), exit))
}

/// Whether a server has a secret or a header of that name, or one that is read from that reference: a
/// header's may have been named by the variable in it.
fn asks_for(server: &Server, name: &str, from: &str) -> bool {
    let headers = match &server.run {
        Run::Remote { headers, .. } => Some(headers),
        _ => None,
    };
    let mut all = server.secrets.iter().chain(headers.into_iter().flatten());
    all.any(|(known, secret)| known == name || secret.from == from)
}

/// Takes out the notes that are of hosts, folders and references of a description that its entry does
/// not have.
fn untrue(described: &Server, entry: &mut Server) {
    let mut gone: Vec<String> = described.egress.clone();
    gone.retain(|host| !entry.egress.contains(host));
    let headers = |server: &Server| match &server.run {
        Run::Remote { headers, .. } => headers.clone(),
        _ => BTreeMap::new(),
    };
    for (described, entry) in
        [(&described.secrets, &entry.secrets), (&headers(described), &headers(entry))]
    {
        let other = described.iter().filter(|(name, secret)| {
            entry.get(*name).is_none_or(|there| there.from != secret.from)
        });
        gone.extend(other.map(|(_, secret)| secret.from.clone()));
    }
    entry.notes.retain(|note| {
        note.kind == Kind::LeftOut
            || !gone.iter().any(|gone| note.text.contains(&format!("`{gone}`")))
    });
}

/// Bytes of what the lock file would have of a description.
fn kept(locked: &Locked) -> usize {
    let tools: usize = locked.tools.iter().flatten().map(String::len).sum();
    tools + locked.said.as_ref().map_or(0, |said| said.to_string().len())
}

/// Has a tool that was off stay off, where the new description leaves it on. Tells what is otherwise.
pub(super) fn still_off(only: &mut Option<Vec<String>>, was: Option<&[String]>) -> Option<Change> {
    let shown = |tools: Option<&[String]>| tools.map(|tools| format!("[{}]", tools.join(", ")));
    let said = only.clone();
    if let Some(was) = was {
        let both = said.as_deref().unwrap_or(was).iter().filter(|tool| was.contains(tool));
        *only = Some(both.cloned().collect());
    }
    let same = |one: Option<&[String]>, other: Option<&[String]>| match (one, other) {
        (Some(one), Some(other)) => {
            one.len() == other.len() && one.iter().all(|tool| other.contains(tool))
        }
        (one, other) => one == other,
    };
    let change = |is: Option<&[String]>, taken| Change {
        key: "tools left on".to_owned(),
        was: shown(was),
        is: shown(is),
        taken,
    };
    if !same(said.as_deref(), only.as_deref()) {
        Some(change(said.as_deref(), false))
    } else if !same(was, only.as_deref()) {
        Some(change(only.as_deref(), true))
    } else {
        None
    }
}

/// Resolves the tag of an image, and tells how the image was asked for.
async fn pin(ctx: &Context, house: &House, server: &mut Server) -> Result<Option<String>, Problem> {
    let Run::Image { image, .. } = &mut server.run else { return Ok(None) };
    let asked = image.to_string();
    if image.digest.is_none() {
        let resolved = {
            let _progress = ctx.progress(format!("asking for the digest of {}", image.name));
            house.resolve(image).await
        };
        match resolved {
            Ok(digest) => image.digest = Some(digest),
            Err(error) => {
                return Err(Problem::of(format!(
                    "the image of `{}` is named by a tag, `{asked}`, which can come to mean another image, and its \
                     digest could not be had ({error:#}); name it by digest",
                    server.name
                )));
            }
        }
    }
    Ok(Some(asked))
}

/// What a server's image was until now: what is locked, or what the config says itself.
fn until_now(house: &House, config: &Config, name: &str) -> Option<String> {
    if let Some(content) = house.lock.servers.get(name).and_then(Locked::content) {
        return Some(content.to_owned());
    }
    let (_, server) = config.servers.iter().find(|(known, _)| known.as_str() == name)?;
    let fixed = images::fixed(server.image.as_deref()?).ok()??;
    Some(fixed.meaning.as_str().to_owned())
}

/// Versions go on, and back only where the person says so: who writes a catalog or pushes an image could
/// put an old one there, with what was mended since.
fn onward(house: &House, server: &Server, back: bool) -> Result<(), Problem> {
    let Run::Image { image, .. } = &server.run else { return Ok(()) };
    let (Some(digest), Some(locked)) = (&image.digest, house.lock.servers.get(&server.name)) else {
        return Ok(());
    };
    if back || !locked.was_once(digest) {
        return Ok(());
    }
    Err(Problem::of(format!(
        "the image of `{}` would be {digest} again, which was moved on from: somebody may have put an old \
         version back; if that is meant, say `--back`",
        server.name
    )))
}

/// Writes policies and the lock, in this order, before the config is: what a server is held to is
/// there before it is.
fn write(house: &mut House, folder: Option<&Path>, taken: &[Taken]) -> anyhow::Result<()> {
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for one in taken {
        if let Policies::Written(path, text) = &one.policies {
            replace(path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let mut moved = Ok(());
    house.change(|lock| {
        let mut next = lock.clone();
        // What the config alone said is remembered as well.
        for one in taken {
            let locked = next.servers.entry(one.server.name.clone()).or_default();
            if let (Some(was), None) = (&one.was, locked.content()) {
                locked.move_to("", Meaning::Digest(was.clone()));
            }
        }
        moved = taken.iter().try_for_each(|one| {
            // What was said is not before it stands in the config.
            let before = next.servers.get(&one.server.name).cloned().unwrap_or_default();
            let first = Locked {
                source: before.source,
                source_digest: before.source_digest,
                tools: before.tools,
                said: before.said,
                ..one.locked.clone()
            };
            next.take(&one.server.name, one.was.as_deref(), &first)
        });
        if moved.is_ok() {
            *lock = next;
        }
    })?;
    Ok(moved?)
}

/// Writes what was said of servers, once it stands in the config.
fn settle_said(house: &mut House, taken: &[Taken]) -> anyhow::Result<()> {
    let mut settled = Ok(());
    house.change(|lock| {
        let mut next = lock.clone();
        settled = taken.iter().try_for_each(|one| {
            next.take(&one.server.name, one.locked.image_digest.as_deref(), &one.locked)
        });
        if settled.is_ok() {
            *lock = next;
        }
    })?;
    Ok(settled?)
}

/// The folder that policies are taken from.
fn policies_folder(config: &Config, base: &std::path::Path) -> Option<PathBuf> {
    if config.policy.bundle.is_some() {
        return None;
    }
    let paths = config.policy.paths.iter().map(|path| base.join(path));
    let mut folders =
        paths.filter(|path| path.is_dir() || (!path.exists() && path.extension().is_none()));
    folders.next()
}

fn tell(
    ctx: &Context,
    from: &str,
    taken: &[Taken],
    refused: &[(String, Vec<Problem>)],
    dry: bool,
) -> anyhow::Result<()> {
    if ctx.is_json() {
        let taken: Vec<Value> = taken
            .iter()
            .map(|taken| {
                let (policy, stays) = match &taken.policies {
                    Policies::Written(path, _) => (Some(path).filter(|_| !dry), None),
                    Policies::Changed(path, text) => {
                        (None, Some(json!({ "file": path, "instead-of": text })))
                    }
                    Policies::Nowhere | Policies::Same | Policies::There(_) => (None, None),
                };
                json!({
                    "server": taken.server, "lock": taken.locked, "policy": policy,
                    "changes": taken.changes, "changed-policy": stays,
                })
            })
            .collect();
        let refused: Vec<Value> = refused
            .iter()
            .map(|(name, problems)| json!({ "name": name, "problems": problems }))
            .collect();
        ctx.json(&json!({ "taken": taken, "refused": refused, "written": !dry }))?;
        return Ok(());
    }
    for one in taken {
        told(ctx, from, one, dry)?;
    }
    for (name, problems) in refused {
        ctx.note(format_args!("not added: `{name}`"));
        for problem in problems {
            let place = problem.place.map_or(String::new(), |place| format!("{from}:{place}: "));
            ctx.note(format_args!("  {place}{problem}"));
        }
    }
    if taken.iter().any(|one| matches!(one.policies, Policies::Nowhere)) {
        ctx.note(
            "policies are taken from a signed bundle, or from single files: no policy was written, so none of \
             these servers may be started yet",
        );
    }
    if taken.iter().any(|one| one.changes.is_none()) && !dry {
        ctx.note(
            "nobody may call it yet: say who, in policies of your own (`portcullis policy new`)",
        );
    }
    Ok(())
}

/// Tells of one that was taken.
fn told(ctx: &Context, from: &str, taken: &Taken, dry: bool) -> anyhow::Result<()> {
    let server = &taken.server;
    let what = match &server.run {
        Run::Image { image, .. } => format!("image {image}"),
        Run::Command { program, .. } => format!("program {program}"),
        Run::Remote { url, .. } => format!("server at {url}"),
    };
    let verb = match (&taken.changes, dry) {
        (None, true) => "would add",
        (None, false) => "added",
        (Some(_), true) => "would replace",
        (Some(_), false) => "replaced",
    };
    ctx.line(format!("{verb} `{}`: {what}", server.name))?;
    for change in taken.changes.iter().flatten() {
        changed(ctx, change)?;
    }
    for (variable, secret) in &server.secrets {
        ctx.line(format!("  secret: `{variable}` comes from `{}`", secret.from))?;
    }
    if let (Run::Remote { headers, .. }, Some(_)) = (&server.run, &taken.changes) {
        for (header, secret) in headers {
            ctx.line(format!("  header: `{header}` comes from `{}`", secret.from))?;
        }
    }
    for note in &server.notes {
        let place = note.place.map_or(String::new(), |place| format!(" ({from}:{place})"));
        ctx.line(format!("  {}: {}{place}", note.kind.as_str(), note.text))?;
    }
    if let Some(missing) = missing(server) {
        ctx.line(format!("  needed: {missing}"))?;
    }
    match &taken.policies {
        Policies::Written(path, _) if !dry => {
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
        Policies::There(path) => {
            ctx.note(format_args!("{} is there already, and stays as it is", path.display()));
        }
        Policies::Written(..) | Policies::Same | Policies::Nowhere => {}
    }
    Ok(())
}

/// Tells what is otherwise with a server, and what is not although its description says so.
pub(super) fn changed(ctx: &Context, change: &Change) -> anyhow::Result<()> {
    let Change { key, was, is, taken } = change;
    let list = matches!(key.as_str(), "mounts" | "egress" | "servers");
    let nothing = || "nothing".to_owned();
    if !taken {
        let is = is.clone().unwrap_or_else(nothing);
        let was = was.clone().unwrap_or_else(nothing);
        ctx.line(format!("  {key}: stays {was}, which is yours; the description says {is}"))?;
        return Ok(());
    }
    match (was, is) {
        (Some(was), None) if list => ctx.line(format!("  {key}: no longer {was}"))?,
        (None, Some(is)) if list => ctx.line(format!("  {key}: also {is}"))?,
        (was, is) => {
            ctx.line(format!("  {key}"))?;
            ctx.line(format!("    from {}", was.clone().unwrap_or_else(nothing)))?;
            ctx.line(format!("    to   {}", is.clone().unwrap_or_else(nothing)))?;
        }
    }
    Ok(())
}

/// What to do about a program that is not on this machine.
fn missing(server: &Server) -> Option<String> {
    let Run::Command { program, .. } = &server.run else { return None };
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = program.contains('/')
        || std::env::split_paths(&folders).any(|folder| folder.join(program).is_file());
    let instead = match program.as_str() {
        "npx" | "uvx" | "uv" => {
            format!(", or import again with `--packages container --replace={}`", server.name)
        }
        _ => String::new(),
    };
    (!found).then(|| format!("`{program}` is not on the PATH here: install it{instead}"))
}

fn reports(Diagnostics(findings): Diagnostics) -> anyhow::Error {
    Reports(findings.into_iter().map(|finding| Box::new(finding) as _).collect()).into()
}

/// Holds the config against the lock file beside it: an image that was pinned is the one that runs.
///
/// # Errors
/// Where they disagree, or the lock file can't be read.
pub(super) fn held(loaded: &Loaded) -> Result<(), Vec<(String, String)>> {
    let lock = match Lock::read(&loaded.base) {
        Ok(lock) => lock,
        Err(error) => return Err(vec![("/servers".to_owned(), error.to_string())]),
    };
    let wrong: Vec<(String, String)> = loaded
        .config
        .servers
        .iter()
        .filter_map(|(name, server)| {
            let error = lock.hold(name.as_str(), server.image.as_deref()?).err()?;
            Some((format!("/servers/{name}/image"), error.to_string()))
        })
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// Has no image run whose tag is not locked, from now on.
///
/// # Errors
/// Those that are not locked.
pub(super) fn settle(loaded: &mut Loaded) -> Result<(), Vec<(String, String)>> {
    let lock = Lock::read(&loaded.base)
        .map_err(|error| vec![("/servers".to_owned(), error.to_string())])?;
    let mut wrong = Vec::new();
    for (name, server) in &loaded.config.servers {
        let Some(image) = &server.image else { continue };
        let settled = match images::fixed(image) {
            Ok(Some(_)) => continue,
            Ok(None) => match lock.meaning(name.as_str(), image) {
                Some(meaning) => images::pinned(image, meaning, false).map(drop),
                None => Err(images::not_locked(name, image)),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = settled {
            wrong.push((format!("/servers/{name}/image"), error.to_string()));
        }
    }
    loaded.only_locked = true;
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}
