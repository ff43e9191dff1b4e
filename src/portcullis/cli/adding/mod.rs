//! Servers that are added: `add`, `server import`, and profiles.
//!
//! Invariant: the written config passes the checks of `check`; otherwise nothing is written. A
//! server that would break it is left out and reported. An entry is replaced only by a description
//! of the same origin, unless the operator names the server. An edited entry is replaced only if
//! the operator names it. Only what the operator named or confirmed is written ([`confirm`]).

mod client_policy;
mod confirm;
mod image;
mod import;
mod options;
mod planned_server;
mod policy_files;
mod report;

use std::path::Path;

use anyhow::{Context as _, bail};

pub(super) use self::{
    client_policy::ClientOptions, confirm::yes, image::locate, import::keep_disabled,
    options::AddOptions,
};
use self::{
    client_policy::ClientPolicy,
    import::Import,
    planned_server::{PlannedServer, Policies},
    report::{Stage, print_report},
};
use crate::{
    cli::{Context, Exit, catalog::Workspace},
    manage::{
        images::{locking, not_locked},
        new_files::{self, NewFile},
    },
};
use portcullis_audit::record::ImageEvent;
use portcullis_catalog::{Entry, Problem, Server, lock::ResolvedImage};
use portcullis_foundation::atomic_file;

/// Servers to import, with their source.
pub(super) struct Offer {
    pub entries: Vec<Entry>,
    /// Source, for the lock file.
    pub source: String,
    pub digest: Option<String>,
    /// Name, for messages.
    pub name: String,
    /// Policy that lets clients use the servers.
    pub clients: Option<ClientPolicy>,
}

impl Offer {
    /// Servers that the command line names. They are in no file, so messages name no position.
    pub fn named(mut entries: Vec<Entry>, source: String) -> Self {
        for entry in &mut entries {
            match &mut entry.server {
                Ok(server) => server.notes.iter_mut().for_each(|note| note.place = None),
                Err(problems) => problems.iter_mut().for_each(|problem| problem.place = None),
            }
        }
        Self { entries, source, digest: None, name: "the command line".to_owned(), clients: None }
    }
}

/// Imports servers into the config. Returns the imported servers and the exit code.
pub(super) async fn take(
    ctx: &Context,
    workspace: &mut Workspace,
    offer: Offer,
    add_options: &AddOptions,
) -> anyhow::Result<(Vec<Server>, Exit)> {
    let mut import = Import::begin(ctx, workspace, &offer, add_options)?;
    let mut planned: Vec<PlannedServer> = Vec::new();
    let mut refused: Vec<(String, Vec<Problem>)> = Vec::new();
    for entry in offer.entries {
        let outcome = match entry.server {
            Ok(server) => {
                let outcome = import.server(server, entry.place).await;
                let place = |problem: Problem| Problem {
                    place: problem.place.filter(|_| offer.digest.is_some()),
                    ..problem
                };
                outcome.map_err(|problem| vec![place(problem)])
            }
            Err(problems) => Err(problems),
        };
        match outcome {
            Ok(one) => planned.push(one),
            Err(problems) => refused.push((entry.name, problems)),
        }
    }
    let Import { before, folder, others, text, .. } = import;
    if let (Some(clients), Some(folder)) = (&offer.clients, &folder) {
        clients.add_files(folder, &mut planned)?;
    }
    let (name, clients) = (&offer.name, offer.clients.as_ref());
    let asks = add_options.asks() && planned.iter().any(PlannedServer::is_change);
    if asks {
        print_report(ctx, name, &planned, &refused, clients, Stage::Planned)?;
        confirm::ask(ctx, &mut planned)?;
        planned
            .iter_mut()
            .for_each(|one| one.decide_policies(folder.as_deref(), &others, add_options));
        if let Some(why) = planned.iter().find_map(PlannedServer::hindered) {
            bail!("nothing was written: {why}");
        }
    }
    if let Some(why) = policy_files::duplicate_id(&others, &planned) {
        bail!("nothing was written: {why}");
    }
    if !planned.is_empty() && !add_options.dry_run {
        // Checked before writing: pins within their own limits may exceed the limit of the file.
        let mut merged = workspace.lock.clone();
        let earlier = workspace.lock.servers.values().flat_map(|pin| pin.client_policies.clone());
        let now = planned.iter().flat_map(|one| one.written_client_files(&workspace.base));
        let written = earlier.chain(now).collect();
        for one in planned.iter_mut().filter(|one| one.replaced.is_none()) {
            one.lock_client_files(&workspace.base, &written);
        }
        let locked = planned.iter().map(|one| (one.server.name.clone(), one.locked.clone()));
        merged.servers.extend(locked);
        merged.text(&workspace.base)?;
        let moves: Vec<ImageEvent> = planned.iter().filter_map(PlannedServer::locking).collect();
        let files: Vec<&NewFile> = planned.iter().flat_map(|one| &one.client_files.new).collect();
        if let Some(folder) = folder.as_ref().filter(|_| !files.is_empty()) {
            make_folder(folder)?;
        }
        new_files::create(files.iter().copied())?;
        let written = async {
            locking(&before, &moves).await?;
            if let Err(error) = write(workspace, folder.as_deref(), &planned) {
                for done in moves {
                    not_locked(ctx, &before, done, &format!("{error:#}")).await;
                }
                return Err(error);
            }
            atomic_file::replace(&ctx.config, text.as_bytes())
                .with_context(|| format!("cannot write {}", ctx.config.display()))
        };
        let written = written.await;
        if written.is_err() {
            new_files::remove(files);
        }
        written?;
    }
    let stage = match (add_options.dry_run, asks) {
        (true, _) => Stage::Planned,
        (false, true) => Stage::Confirmed,
        (false, false) => Stage::Written,
    };
    print_report(ctx, name, &planned, &refused, clients, stage)?;
    let exit = match (planned.is_empty(), refused.is_empty()) {
        (true, _) => Exit::Failure,
        (false, true) => Exit::Ok,
        (false, false) => Exit::Findings,
    };
    Ok((planned.into_iter().map(|planned| planned.server).collect(), exit))
}

fn make_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}

/// Writes policies, then the lock file; the config is written last. The restrictions of a server
/// thus exist before its entry. If the entry is then not written, it differs from the lock file and
/// counts as edited by the operator.
fn write(
    workspace: &mut Workspace,
    folder: Option<&Path>,
    planned: &[PlannedServer],
) -> anyhow::Result<()> {
    folder.map(make_folder).transpose()?;
    for one in planned {
        if let Policies::Written { path, text, .. } = &one.policies {
            atomic_file::replace(path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let mut moved = Ok(());
    workspace.change(|lock| {
        let mut next = lock.clone();
        // Keeps the digest that only the config had.
        for one in planned {
            let locked = next.servers.entry(one.server.name.clone()).or_default();
            if let (Some(was), None) = (&one.was, locked.content()) {
                locked.move_to("", ResolvedImage::Digest(was.clone()));
            }
        }
        moved = planned
            .iter()
            .try_for_each(|one| next.take(&one.server.name, one.was.as_deref(), &one.locked));
        if moved.is_ok() {
            *lock = next;
        }
    })?;
    Ok(moved?)
}
