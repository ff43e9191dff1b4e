//! Servers that others described, taken into the config: `server add`, `server import`, and profiles.
//!
//! Invariant: the config that is written passes the checks of `check`, or nothing is written. A
//! server that spoils it is left out, and said to be.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    audit::record::{ImageDid, ImageDone},
    catalog::{
        Entry, Names, Options, Packages, Problem, Run, Server,
        lock::{Lock, Locked, Meaning, replace},
        set, settings, tool_lists,
        write::{Writing, add, file_name, names, policy},
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
    /// Where a secret comes from, by the variable that the server reads, such as `TOKEN=env:MY_TOKEN`
    #[arg(long = "secret", value_name = "NAME=REFERENCE")]
    secrets: Vec<String>,
    /// How packages that npx or uvx would fetch run
    #[arg(long, value_enum, default_value_t = How::Process)]
    packages: How,
    /// Replace servers of the same name
    #[arg(long)]
    replace: bool,
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

impl Said {
    /// Whether nothing is to be written.
    pub fn is_dry(&self) -> bool {
        self.dry_run
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
        let broken = |file: &Fetched, problem: Problem| {
            let place = problem.place.map_or(String::new(), |place| format!(":{place}"));
            anyhow::anyhow!("{}{place}: {problem}", file.name)
        };
        if let Some(path) = &self.settings {
            let fetched = file(path)?;
            options.values =
                settings(&fetched.text).map_err(|problem| broken(&fetched, problem))?;
        }
        if let Some(path) = &self.tools {
            let fetched = file(path)?;
            options.only =
                tool_lists(&fetched.text).map_err(|problem| broken(&fetched, problem))?;
        }
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
        for text in &self.secrets {
            // What was written is not repeated: it may be the secret.
            let (name, from) = text
                .split_once('=')
                .filter(|(_, from)| from.parse::<Source>().is_ok())
                .ok_or_else(|| {
                    let text = "write `--secret NAME=REFERENCE`, such as `env:VARIABLE`, `file:PATH` or \
                                `vault:PATH#KEY` (docs/secrets.md has them all), never the value";
                    Usage(text.to_owned())
                })?;
            options.secrets.insert(name.to_owned(), from.to_owned());
        }
        Ok(options)
    }
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
    let writing = Writing { replace: said.replace };
    let mut taken = Vec::new();
    let mut refused: Vec<(String, Vec<Problem>)> = Vec::new();
    for entry in offer.entries {
        let mut server = match entry.server {
            Ok(server) => server,
            Err(problems) => {
                refused.push((entry.name, problems));
                continue;
            }
        };
        let again = said.replace && there.contains(&server.name);
        let mut asked = None;
        let outcome = async {
            if !again {
                known
                    .take(&server.name)
                    .map_err(|error| Problem::at(entry.place, error.to_string()))?;
            }
            asked = pin(ctx, house, &mut server).await?;
            onward(house, &server, said.back)?;
            let added = add(&text, &server, writing)
                .map_err(|error| Problem::at(entry.place, error.to_string()))?;
            // What the config's own checks find counts as ours.
            config::parse(&ctx.config, &added).map_err(|Diagnostics(found)| {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                Problem::at(entry.place, found.join("; "))
            })?;
            Ok::<_, Problem>(added)
        };
        match outcome.await {
            Ok(added) => {
                text = added;
                let image_digest = match &server.run {
                    Run::Image { image, .. } => image.digest.clone(),
                    _ => None,
                };
                let locked = Locked {
                    source: Some(offer.source.clone()),
                    source_digest: offer.digest.clone(),
                    image: asked,
                    image_digest,
                    ..Locked::default()
                };
                let was = until_now(house, &before.config, &server.name);
                taken.push(Taken { server, locked, was });
            }
            Err(problem) => refused.push((entry.name, vec![problem])),
        }
    }
    let policies = match taken.is_empty() {
        true => Vec::new(),
        false if said.dry_run => Vec::new(),
        false => {
            let moves: Vec<ImageDone> = taken.iter().filter_map(Taken::locking).collect();
            locking(&before, &moves).await?;
            match write(ctx, house, &before, &taken, said.replace) {
                Ok(policies) => policies,
                Err(error) => {
                    for done in moves {
                        not_locked(ctx, &before, done, &format!("{error:#}")).await;
                    }
                    return Err(error);
                }
            }
        }
    };
    if !taken.is_empty() && !said.dry_run {
        replace(&ctx.config, text.as_bytes())
            .with_context(|| format!("cannot write {}", ctx.config.display()))?;
    }
    tell(ctx, &offer.name, &taken, &refused, &policies, said.dry_run)?;
    let exit = match (taken.is_empty(), refused.is_empty()) {
        (true, _) => Exit::Failure,
        (false, true) => Exit::Ok,
        (false, false) => Exit::Findings,
    };
    Ok((taken.into_iter().map(|taken| taken.server).collect(), exit))
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
/// there before it is. Tells the files of policies.
fn write(
    ctx: &Context,
    house: &mut House,
    before: &Loaded,
    taken: &[Taken],
    replaced: bool,
) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut policies = Vec::new();
    let folder = policies_folder(&before.config, &house.base);
    match &folder {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            for Taken { server, .. } in taken {
                let path = folder.join(file_name(&server.name));
                if path.exists() && !replaced {
                    ctx.note(format_args!("{} is there already, and stays as it is", path.display()));
                } else {
                    replace(&path, policy(server).as_bytes())
                        .with_context(|| format!("cannot write {}", path.display()))?;
                    policies.push((server.name.clone(), path));
                }
            }
        }
        None => ctx.note(
            "policies are taken from a signed bundle, or from single files: no policy was written, so none of \
             these servers may be started yet",
        ),
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
        moved = taken
            .iter()
            .try_for_each(|one| next.take(&one.server.name, one.was.as_deref(), &one.locked));
        if moved.is_ok() {
            *lock = next;
        }
    })?;
    moved?;
    Ok(policies)
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
    policies: &[(String, PathBuf)],
    dry: bool,
) -> anyhow::Result<()> {
    if ctx.is_json() {
        let taken: Vec<Value> = taken
            .iter()
            .map(|taken| {
                let name = &taken.server.name;
                let policy = policies.iter().find(|(of, _)| of == name).map(|(_, path)| path);
                json!({ "server": taken.server, "lock": taken.locked, "policy": policy })
            })
            .collect();
        let refused: Vec<Value> = refused
            .iter()
            .map(|(name, problems)| json!({ "name": name, "problems": problems }))
            .collect();
        ctx.json(&json!({ "taken": taken, "refused": refused, "written": !dry }))?;
        return Ok(());
    }
    for Taken { server, .. } in taken {
        let what = match &server.run {
            Run::Image { image, .. } => format!("image {image}"),
            Run::Command { program, .. } => format!("program {program}"),
            Run::Remote { url, .. } => format!("server at {url}"),
        };
        let verb = if dry { "would add" } else { "added" };
        ctx.line(format!("{verb} `{}`: {what}", server.name))?;
        for (variable, secret) in &server.secrets {
            ctx.line(format!("  secret: `{variable}` comes from `{}`", secret.from))?;
        }
        for note in &server.notes {
            let place = note.place.map_or(String::new(), |place| format!(" ({from}:{place})"));
            ctx.line(format!("  {}: {}{place}", note.kind.as_str(), note.text))?;
        }
        if let Some(missing) = missing(&server.run) {
            ctx.line(format!("  needed: {missing}"))?;
        }
        if let Some((_, path)) = policies.iter().find(|(name, _)| *name == server.name) {
            ctx.line(format!("  policies: {}", path.display()))?;
        }
    }
    for (name, problems) in refused {
        ctx.note(format_args!("not added: `{name}`"));
        for problem in problems {
            let place = problem.place.map_or(String::new(), |place| format!("{from}:{place}: "));
            ctx.note(format_args!("  {place}{problem}"));
        }
    }
    if !taken.is_empty() && !dry {
        ctx.note(
            "nobody may call it yet: say who, in policies of your own (`portcullis policy new`)",
        );
    }
    Ok(())
}

/// What to do about a program that is not on this machine.
fn missing(run: &Run) -> Option<String> {
    let Run::Command { program, .. } = run else { return None };
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = program.contains('/')
        || std::env::split_paths(&folders).any(|folder| folder.join(program).is_file());
    let instead = match program.as_str() {
        "npx" | "uvx" | "uv" => ", or import again with `--packages container --replace`",
        _ => "",
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
