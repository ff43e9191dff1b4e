//! Servers that others described, taken into the config: `server add`, `server import`, and profiles.
//!
//! Invariant: the config that is written passes the checks of `check`, or nothing is written. A
//! server that spoils it is left out, and said to be. What is taken in the place of something that is
//! there leaves what the operator wrote, and is of the same origin or named by the operator. Nothing is
//! written that the operator did not name or confirm ([`confirm`]).

mod confirm;
mod image;
mod options;
mod report;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use self::{
    confirm::Others,
    image::{onward, pin},
    options::SecretFrom,
    report::{Stage, tell},
};
pub(super) use self::{image::locate, options::Said, report::changed};
use crate::cli::{
    Context, Exit, Reports, Usage,
    catalog::Workspace,
    server::{locking, not_locked},
};
use portcullis_audit::record::{ImageDid, ImageDone};
use portcullis_catalog::{
    Entry, Kind, Names, Problem, Run, Server, brief,
    lock::{self, Lock, ResolvedImage, ServerPin},
    own_variables,
    write::{self, Change, add, file_name, names, policy},
};
use portcullis_config::{Config, Diagnostics, Loaded};
use portcullis_foundation::atomic_file;
use portcullis_upstream::images;

/// Bytes of what the lock file keeps of one server's description.
const MOST_KEPT: usize = 256 << 10;

/// Servers to take, and whence they come.
pub(super) struct Offer {
    pub entries: Vec<Entry>,
    /// For the lock file.
    pub source: String,
    pub digest: Option<String>,
    /// For messages.
    pub name: String,
    /// Whether the command line names all that there is: an image alone.
    pub in_full: bool,
}

/// One that was taken.
struct Taken {
    server: Server,
    /// What the lock file has of its name.
    old: Option<ServerPin>,
    locked: ServerPin,
    /// What its image was until now.
    was: Option<String>,
    /// What is otherwise than it was. Nothing: it is new.
    changes: Option<Vec<Change>>,
    policies: Policies,
    /// Secrets that nobody named or confirmed, and that the policies which stay may permit all the same.
    perhaps: BTreeSet<String>,
    /// Other files whose policies hold for it already, each with the secrets that it may permit and nobody
    /// confirmed.
    elsewhere: Vec<(PathBuf, BTreeSet<String>)>,
}

/// What becomes of a server's policies.
enum Policies {
    /// There is no folder for them.
    Nowhere,
    /// They are written.
    Written(PathBuf, String),
    /// They are what would be written.
    Same,
    /// Others are there already, of which nobody knows what they permit: the server is not taken.
    There(PathBuf),
    /// Somebody changed them, and they stay. With what would be written.
    Changed(PathBuf, String),
}

impl Policies {
    fn of(
        folder: Option<&Path>,
        server: &Server,
        locked: Option<&ServerPin>,
        said: &Said,
        again: bool,
        seen: bool,
    ) -> Self {
        let Some(folder) = folder else { return Self::Nowhere };
        let (path, text) = (folder.join(file_name(&server.name)), policy(server));
        let ours = locked.and_then(|locked| locked.policies.as_deref()).filter(|_| again);
        // Who took them away may have meant it.
        let never = !again || locked.is_none_or(|locked| locked.source.is_none());
        if never && !path.exists() {
            return Self::Written(path, text);
        }
        // What can't be read is nothing that was written so.
        let there = std::fs::read(&path).unwrap_or_default();
        if there == text.as_bytes() {
            Self::Same
        } else if said.overwrite_policies || seen || ours == Some(&*lock::digest(&there)) {
            Self::Written(path, text)
        } else if !again {
            Self::There(path)
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
    /// Decides what becomes of its policies, and what is locked of them and of what is confirmed.
    fn settle(&mut self, folder: Option<&Path>, others: &Others, said: &Said) {
        let (old, again) = (self.old.as_ref(), self.changes.is_some());
        // What is there was what would be written, before a secret was confirmed.
        let seen = matches!(self.policies, Policies::Same);
        self.policies = Policies::of(folder, &self.server, old, said, again, seen);
        self.perhaps = match &self.policies {
            Policies::Changed(path, _) => {
                let names = self.open().map(|(name, _)| name);
                confirm::perhaps_permitted(&confirm::policies(path), &self.server.name, names)
            }
            _ => BTreeSet::new(),
        };
        self.elsewhere = self.permitted_elsewhere(folder, others);
        self.locked.policies = self.policies.digest(&self.server);
        self.locked.confirmed = self.locked_references(true);
        self.locked.unconfirmed = self.locked_references(false);
        self.locked.destination = self.server.destination();
    }

    /// Whether it brings anything that was not there before.
    fn is_news(&self) -> bool {
        let changed = |changes: &Vec<Change>| changes.iter().any(|change| change.taken);
        self.changes.as_ref().is_none_or(changed) || matches!(self.policies, Policies::Written(..))
    }

    /// Why it can't be written as it is: policies that are there may permit what nobody confirmed.
    fn hindered(&self) -> Option<String> {
        if let Policies::There(path) = &self.policies {
            return Some(format!(
                "{} exists and has other rules; remove it, or let the import write it with `--replace \
                 --overwrite-policies`",
                path.display()
            ));
        }
        if !self.is_news() {
            return None;
        }
        let listed = |secrets: &BTreeSet<String>| {
            let names: Vec<String> = secrets.iter().map(|name| format!("`{name}`")).collect();
            names.join(", ")
        };
        if let Policies::Changed(path, _) = &self.policies
            && !self.perhaps.is_empty()
        {
            return Some(format!(
                "{} was changed by hand and may permit {}, which nobody confirmed: confirm it with `--secret \
                 NAME=REFERENCE`, or let the import write the file with `--overwrite-policies`",
                path.display(),
                listed(&self.perhaps)
            ));
        }
        // Of a server that is there, a reference may be the operator's own.
        let mut elsewhere = self.elsewhere.iter().filter(|_| self.changes.is_some());
        let (path, secrets) = elsewhere.find(|(_, secrets)| !secrets.is_empty())?;
        Some(format!(
            "{} may permit {}, which nobody confirmed: confirm it with `--secret NAME=REFERENCE`",
            path.display(),
            listed(secrets)
        ))
    }

    /// What is on record of it before it is locked: an image that was another, or none.
    fn locking(&self) -> Option<ImageDone> {
        let Run::Image { image, .. } = &self.server.run else { return None };
        let digest = self.locked.content()?.to_owned();
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
    house: &mut Workspace,
    offer: Offer,
    said: &Said,
) -> anyhow::Result<(Vec<Server>, Exit)> {
    let mut text = match std::fs::read_to_string(&ctx.config) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("cannot read {}", ctx.config.display()))?,
    };
    // A config that is wrong already is not ours to change.
    let before = portcullis_config::parse(&ctx.config, &text).map_err(reports)?;
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
    let others = confirm::files(&before.config, &house.base);
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
        let mut by_operator: Vec<String> = Vec::new();
        let own: Vec<SecretFrom<'_>> = secrets
            .iter()
            .copied()
            .filter(|(of, ..)| of.is_none_or(|of| of == server.original))
            .collect();
        let unwritten = |error: write::Unwritten| problem(error.to_string());
        let outcome = async {
            if again {
                let words = old.as_ref().and_then(|old| old.said.as_ref());
                by_operator = match words {
                    Some(words) => {
                        let own = write::written_by_operator(&text, &server.name, words);
                        own.map_err(unwritten)?.into_iter().collect()
                    }
                    None => Vec::new(),
                };
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
            if let Some((_, name, _)) =
                own.iter().find(|(_, name, from)| !asks_for(&server, name, from))
            {
                return Err(Problem::of(format!(
                    "`{}` of `--secret` is no secret and no header that `{}` asks for",
                    brief(name),
                    server.name
                )));
            }
            let named: BTreeSet<String> = own.iter().map(|(.., from)| (*from).to_owned()).collect();
            asked = pin(ctx, house, &mut server).await?;
            onward(house, &server, said.allow_downgrade)?;
            let mut locked = ServerPin {
                said: Some(write::said(&server).map_err(unwritten)?),
                ..ServerPin::default()
            };
            let (added, changes) = if again {
                let before = old.as_ref().and_then(|old| old.said.as_ref());
                let confirmed = old.as_ref().map(|old| old.confirmed.clone()).unwrap_or_default();
                let mut done =
                    write::again(&text, &server, before, &confirmed, &named).map_err(unwritten)?;
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
            portcullis_config::parse(&ctx.config, &added).map_err(|Diagnostics(found)| {
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
                let image = match &server.run {
                    Run::Image { image, .. } => Some(image),
                    Run::Command { .. } | Run::Remote { .. } => None,
                };
                let locked = ServerPin {
                    source: Some(offer.source.clone()),
                    source_digest: offer.digest.clone(),
                    image: asked,
                    image_digest: image.and_then(|image| image.digest.clone()),
                    image_id: image.and_then(|image| image.id.clone()),
                    ..locked
                };
                let was = until_now(house, &before.config, &server.name);
                let policies = Policies::Nowhere;
                let (perhaps, elsewhere) = (BTreeSet::new(), Vec::new());
                let mut one =
                    Taken { server, old, locked, was, changes, policies, perhaps, elsewhere };
                let named: Vec<&str> = own.iter().map(|(.., from)| *from).collect();
                one.permit(&named, &by_operator);
                one.settle(folder.as_deref(), &others, said);
                // A question that is still to come may confirm a secret, but can't make a file the server's.
                let asked_later = !said.yes && !said.dry_run && !offer.in_full;
                let may_be_confirmed = asked_later && !matches!(one.policies, Policies::There(_));
                if let Some(why) = one.hindered().filter(|_| !may_be_confirmed) {
                    refused.push((entry.name, vec![problem(why)]));
                    continue;
                }
                text = added;
                taken.push(one);
            }
            Err(problem) => refused.push((entry.name, vec![problem])),
        }
    }
    let news = !offer.in_full && taken.iter().any(Taken::is_news);
    let asks = news && !said.yes && !said.dry_run;
    if asks {
        tell(ctx, &offer.name, &taken, &refused, Stage::Planned)?;
        confirm::ask(ctx, &mut taken)?;
        taken.iter_mut().for_each(|one| one.settle(folder.as_deref(), &others, said));
        if let Some(why) = taken.iter().find_map(Taken::hindered) {
            bail!("nothing was written: {why}");
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
        atomic_file::replace(&ctx.config, text.as_bytes())
            .with_context(|| format!("cannot write {}", ctx.config.display()))?;
        settle_said(house, &taken)?;
    }
    let stage = match (said.dry_run, asks) {
        (true, _) => Stage::Planned,
        (false, true) => Stage::Confirmed,
        (false, false) => Stage::Written,
    };
    tell(ctx, &offer.name, &taken, &refused, stage)?;
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
    server.references().any(|(known, secret)| known == name || secret.from == from)
}

/// Takes out the notes that are of hosts, folders and references of a description that its entry does
/// not have.
fn untrue(described: &Server, entry: &mut Server) {
    let mut gone: Vec<String> = described.egress.clone();
    gone.retain(|host| !entry.egress.contains(host));
    for (name, secret) in described.references() {
        let stands =
            entry.references().any(|(there, now)| there == name && now.from == secret.from);
        if !stands {
            gone.push(secret.from.clone());
        }
    }
    entry.notes.retain(|note| {
        note.kind == Kind::LeftOut
            || !gone.iter().any(|gone| note.text.contains(&format!("`{gone}`")))
    });
}

/// Bytes of what the lock file would have of a description.
fn kept(locked: &ServerPin) -> usize {
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

/// What a server's image was until now: what is locked, or what the config says itself.
fn until_now(house: &Workspace, config: &Config, name: &str) -> Option<String> {
    if let Some(content) = house.lock.servers.get(name).and_then(ServerPin::content) {
        return Some(content.to_owned());
    }
    let (_, server) = config.servers.iter().find(|(known, _)| known.as_str() == name)?;
    let fixed = images::fixed(server.image.as_deref()?).ok()??;
    Some(fixed.meaning.as_str().to_owned())
}

/// Writes policies and the lock, in this order, before the config is: what a server is held to is
/// there before it is.
fn write(house: &mut Workspace, folder: Option<&Path>, taken: &[Taken]) -> anyhow::Result<()> {
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for one in taken {
        if let Policies::Written(path, text) = &one.policies {
            atomic_file::replace(path, text.as_bytes())
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
                locked.move_to("", ResolvedImage::Digest(was.clone()));
            }
        }
        moved = taken.iter().try_for_each(|one| {
            // What was said is not before it stands in the config.
            let before = next.servers.get(&one.server.name).cloned().unwrap_or_default();
            let first = ServerPin {
                source: before.source,
                source_digest: before.source_digest,
                tools: before.tools,
                said: before.said,
                destination: before.destination,
                confirmed: before.confirmed,
                unconfirmed: before.unconfirmed,
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
fn settle_said(house: &mut Workspace, taken: &[Taken]) -> anyhow::Result<()> {
    let mut settled = Ok(());
    house.change(|lock| {
        let mut next = lock.clone();
        settled = taken
            .iter()
            .try_for_each(|one| next.take(&one.server.name, one.locked.content(), &one.locked));
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

/// References to variables of the proxy that a description chose and nobody confirmed, of entries that a lock file
/// of an earlier version brought. With the place of each in the config.
pub(super) fn unconfirmed(loaded: &Loaded) -> Vec<(String, String)> {
    // One that can't be read is found elsewhere.
    let lock = Lock::read(&loaded.base).unwrap_or_default();
    let mut found = Vec::new();
    for (name, server) in &loaded.config.servers {
        let Some(locked) = lock.servers.get(name.as_str()) else { continue };
        let chosen = |table: &str, of: &str| -> Option<&str> {
            locked.said.as_ref()?.get(table)?.get(of)?.get("from")?.as_str()
        };
        let secrets = server.secrets.iter().map(|(of, secret)| ("secrets", of, &secret.from));
        let headers = server.headers.iter().map(|(of, header)| ("headers", of, &header.from));
        for (table, of, from) in secrets.chain(headers) {
            let Some(from) = from.as_deref() else { continue };
            let own = from.starts_with(&format!("env:{}", own_variables(name.as_str())));
            let confirmed = locked.confirmed.get(of).map(String::as_str) == Some(from);
            let suspect = match &locked.said {
                Some(_) => chosen(table, of) == Some(from),
                // Which of them the description chose is not known.
                None => locked.source.is_some(),
            };
            if from.starts_with("env:") && !own && !confirmed && suspect {
                found.push((
                    format!("/servers/{name}/{table}/{of}"),
                    format!(
                        "`{of}` of `{name}` comes from `{from}`, which the description of the server chose and nobody \
                         confirmed"
                    ),
                ));
            }
        }
    }
    found
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
