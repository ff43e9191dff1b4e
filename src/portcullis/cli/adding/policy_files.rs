//! Policy files of the config, and the secrets that they may permit.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PolicySet, PrincipalConstraint, ResourceConstraint,
};

use super::planned_server::PlannedServer;
use portcullis_config::Config;
use portcullis_policy::Source;

/// Policy files that the config names.
#[derive(Debug)]
pub(super) struct ConfiguredPolicyFiles {
    /// Folder that relative names are resolved against.
    pub base: PathBuf,
    /// Names from the config, with the policies; `None` if they cannot be read.
    pub files: Vec<(PathBuf, Option<PolicySet>)>,
}

/// Policies of a file; empty if the file is missing, `None` if it cannot be read.
pub(super) fn policies(file: &Path) -> Option<PolicySet> {
    match std::fs::read_to_string(file) {
        Ok(text) => parsed(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(PolicySet::new()),
        Err(_) => None,
    }
}

fn parsed(text: &str) -> Option<PolicySet> {
    let policies = text.parse::<PolicySet>().ok();
    policies.filter(|policies| policies.templates().next().is_none())
}

/// Policy files that the config names, each with its policies. A file or bundle that cannot be read
/// may permit anything.
pub(super) fn files(config: &Config, base: &Path) -> ConfiguredPolicyFiles {
    let source = Source::of(&config.policy, &config.state_dir);
    let sources = match &source {
        Source::Bundle(_) => vec![(source.paths(), source.clone())],
        // Read one by one: an unreadable path hides no other. The first import makes the folder.
        _ => source
            .paths()
            .iter()
            .filter(|path| base.join(path).symlink_metadata().is_ok())
            .map(|path| (std::slice::from_ref(path), Source::Paths(vec![path.clone()])))
            .collect(),
    };
    let files = sources.into_iter().flat_map(|(paths, source)| match source.texts(base) {
        Ok(texts) => texts
            .into_iter()
            .filter(|(file, _)| file.extension().is_none_or(|end| end != "json"))
            .map(|(file, text)| (file, parsed(&text)))
            .collect(),
        Err(_) => paths.iter().map(|path| (path.clone(), None)).collect::<Vec<_>>(),
    });
    let files = files.collect();
    ConfiguredPolicyFiles { base: base.to_owned(), files }
}

/// An id of a policy to write that another file has already, in a sentence. The proxy would load
/// neither.
pub(super) fn duplicate_id(
    files: &ConfiguredPolicyFiles,
    planned: &[PlannedServer],
) -> Option<String> {
    let written: Vec<(&Path, &str)> = planned.iter().flat_map(PlannedServer::written).collect();
    let is_written = |path: &Path| written.iter().any(|(written, _)| *written == path);
    let others = files.files.iter().filter(|(file, _)| !is_written(&files.base.join(file)));
    let others: Vec<_> = others.collect();
    written.iter().flat_map(|(path, text)| parsed(text).map(|policies| (path, policies))).find_map(
        |(path, new)| {
            let taken =
                new.policies().filter_map(|policy| policy.annotation("id")).find_map(|id| {
                    let has = |policies: &PolicySet| {
                        policies.policies().any(|policy| policy.annotation("id") == Some(id))
                    };
                    let (file, _) = others.iter().find(|(_, all)| all.as_ref().is_some_and(has))?;
                    Some((id.to_owned(), file))
                });
            let (id, file) = taken?;
            Some(format!(
                "{} has a policy `{id}`, and {} would have one, too: change that id",
                file.display(),
                path.display()
            ))
        },
    )
}

/// Secrets of a server that policies may permit, by the scope of each permit. Unreadable policies may
/// permit all of them; the conditions of permits are ignored.
pub(super) fn perhaps_permitted<'a>(
    policies: &Option<PolicySet>,
    server: &str,
    secrets: impl Iterator<Item = &'a str>,
) -> BTreeSet<String> {
    let is = |uid: &EntityUid, kind: &str, id: &str| {
        uid.type_name().basename() == kind && uid.id().unescaped() == id
    };
    let permits = |policy: &Policy, secret: &str| {
        let delivers = |action: &EntityUid| {
            ["deliver_secret", "from_proxy"].iter().any(|id| is(action, "Action", id))
        };
        let action = match policy.action_constraint() {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(action) => delivers(&action),
            ActionConstraint::In(actions) => actions.iter().any(delivers),
        };
        let principal = match policy.principal_constraint() {
            PrincipalConstraint::Any => true,
            PrincipalConstraint::Is(kind) => kind.basename() == "Server",
            PrincipalConstraint::Eq(uid)
            | PrincipalConstraint::In(uid)
            | PrincipalConstraint::IsIn(_, uid) => is(&uid, "Server", server),
        };
        let resource = match policy.resource_constraint() {
            ResourceConstraint::Any => true,
            ResourceConstraint::Is(kind) => kind.basename() == "Secret",
            ResourceConstraint::Eq(uid)
            | ResourceConstraint::In(uid)
            | ResourceConstraint::IsIn(_, uid) => {
                is(&uid, "Secret", &format!("{server}/{secret}")) || is(&uid, "Server", server)
            }
        };
        policy.effect() == Effect::Permit && action && principal && resource
    };
    let may = |secret: &&str| {
        policies.as_ref().is_none_or(|all| all.policies().any(|policy| permits(policy, secret)))
    };
    secrets.filter(may).map(str::to_owned).collect()
}
