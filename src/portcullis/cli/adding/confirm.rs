//! Confirmation by the operator before anything is written.
//!
//! Invariant: writing requires a yes at a terminal, `--yes`, or a command line that names
//! everything. Permitting a secret requires a yes of its own or `--secret`; `--yes` alone permits
//! no secret.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::bail;
use cedar_policy::{Effect, Policy};

use super::{
    planned_server::PlannedServer,
    policy_files::{ConfiguredPolicyFiles, perhaps_permitted},
};
use crate::cli::Context;
use portcullis_catalog::write::file_name;

impl PlannedServer {
    /// Secrets and headers that are neither named nor confirmed, with their references.
    pub(super) fn open(&self) -> impl Iterator<Item = (&str, &str)> {
        let open = self.server.references().filter(|(_, secret)| !secret.permitted);
        open.map(|(name, secret)| (name.as_str(), secret.from.as_str()))
    }

    /// Permits the references that the operator named or confirmed earlier for the same
    /// destination, if they are still in the entry.
    pub(super) fn permit_confirmed(&mut self) {
        let destination = self.server.destination();
        let old = self.old.as_ref().filter(|old| old.has_same_destinations(&destination));
        for (name, secret) in self.server.references_mut() {
            secret.permitted |=
                old.is_some_and(|old| old.confirmed.get(name) == Some(&secret.from));
        }
    }

    /// Other policy files that may permit an unconfirmed secret. For a new server, also files with
    /// permits for its name. `folder` contains the policies of the import.
    pub(super) fn permitted_elsewhere(
        &self,
        folder: Option<&Path>,
        others: &ConfiguredPolicyFiles,
    ) -> Vec<(PathBuf, BTreeSet<String>)> {
        let name = &self.server.name;
        let own = folder.map(|folder| folder.join(file_name(name)));
        let is_own = |file: &Path| own.as_ref().is_some_and(|own| *own == others.base.join(file));
        let others = others.files.iter().filter(|(file, _)| !is_own(file));
        let named = |policy: &Policy| {
            let text = policy.to_string();
            policy.effect() == Effect::Permit
                && (text.contains(&format!("::Server::\"{name}\""))
                    || text.contains(&format!("\"{name}/")))
        };
        let found = others.map(|(file, all)| {
            let secrets = perhaps_permitted(all, name, self.open().map(|(name, _)| name));
            let named = self.replaced.is_none() && all.iter().any(|all| all.policies().any(named));
            (file.clone(), secrets, named)
        });
        let found = found.filter(|(_, secrets, named)| *named || !secrets.is_empty());
        found.map(|(file, secrets, _)| (file, secrets)).collect()
    }

    /// References for the lock file: either the confirmed or the unconfirmed ones.
    pub(super) fn locked_references(&self, confirmed: bool) -> BTreeMap<String, String> {
        let chosen = self.server.references().filter(|(_, secret)| secret.permitted == confirmed);
        chosen.map(|(name, secret)| (name.clone(), secret.from.clone())).collect()
    }
}

/// Asks the operator at a terminal to confirm what was shown.
///
/// # Errors
/// There is no terminal, or the answer is no.
pub(super) fn ask(ctx: &Context, planned: &mut [PlannedServer]) -> anyhow::Result<()> {
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal() && !ctx.is_json();
    if !terminal {
        bail!(
            "nothing was written, because it was not confirmed: read what is shown, and confirm it with `--yes`; a \
             secret or a header is confirmed by its name, with `--secret NAME=REFERENCE` (of several servers, \
             `--secret SERVER/NAME=REFERENCE`)"
        );
    }
    for one in planned.iter_mut() {
        let open: Vec<String> =
            one.open().map(|(name, from)| format!("{name} <- {from}")).collect();
        if open.is_empty() {
            continue;
        }
        let (name, to) = (&one.server.name, one.server.destination().join(", "));
        if yes(
            ctx,
            &format!("Let `{name}` have {}, which goes to {to}? [y/N] ", open.join(" and ")),
        )? {
            for (_, secret) in one.server.references_mut() {
                secret.permitted = true;
            }
        }
    }
    let servers: Vec<String> = planned.iter().map(|one| format!("`{}`", one.server.name)).collect();
    if !yes(ctx, &format!("Write {} as shown, with the permits? [y/N] ", servers.join(", ")))? {
        bail!("nothing was written");
    }
    Ok(())
}

/// Asks a question at the terminal. Every answer except `y` and `yes` is no.
pub(in crate::cli) fn yes(ctx: &Context, question: &str) -> anyhow::Result<bool> {
    ctx.ask(question);
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
