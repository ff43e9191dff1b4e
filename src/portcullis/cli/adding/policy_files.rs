//! Policy files of the config, and the secrets that they may permit.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use cedar_policy::{
    ActionConstraint, Effect, EntityUid, Policy, PolicySet, PrincipalConstraint, ResourceConstraint,
};

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

/// Secrets of a server that policies may permit. Unreadable policies may permit all of them; the
/// conditions of permits are ignored.
pub(super) fn perhaps_permitted<'a>(
    policies: &Option<PolicySet>,
    server: &str,
    secrets: impl Iterator<Item = &'a str>,
) -> BTreeSet<String> {
    let is = |uid: &EntityUid, id: &str| uid.id().unescaped() == id;
    let permits = |policy: &Policy, secret: &str| {
        let action = match policy.action_constraint() {
            ActionConstraint::Eq(action) => is(&action, "deliver_secret"),
            ActionConstraint::Any | ActionConstraint::In(_) => true,
        };
        let principal = match policy.principal_constraint() {
            PrincipalConstraint::Eq(principal) => is(&principal, server),
            _ => true,
        };
        let resource = match policy.resource_constraint() {
            ResourceConstraint::Eq(resource) => is(&resource, &format!("{server}/{secret}")),
            _ => true,
        };
        policy.effect() == Effect::Permit && action && principal && resource
    };
    let may = |secret: &&str| {
        policies.as_ref().is_none_or(|all| all.policies().any(|policy| permits(policy, secret)))
    };
    secrets.filter(may).map(str::to_owned).collect()
}
