//! Servers of the config with the overrides of a profile.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};

use portcullis_catalog::{brief, profile_file::Profile};
use portcullis_config::Loaded;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::config::Server;

/// Server of the config with the overrides of a profile.
///
/// # Errors
/// The config lacks the server, or a setting that the profile overrides.
pub fn with_overrides<'a>(
    loaded: &'a Loaded,
    profile: &Profile,
    name: &str,
) -> anyhow::Result<(&'a ServerName, Server)> {
    let known = loaded.config.servers.iter().find(|(known, _)| known.as_str() == name);
    let Some((known, server)) = known else {
        if loaded.disabled.keys().any(|disabled| disabled.as_str() == name) {
            bail!("server `{name}` is disabled: `portcullis server enable {name}` enables it");
        }
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
                "the source of `{shown}` of `{name}` is not a reference (docs/concepts/secrets.md has them all)"
            );
        };
        *there = Some(source.relative_to(&loaded.base).to_string());
    }
    Ok((known, server))
}

/// Reduces a config to the servers of a profile, with the overrides of the profile.
///
/// # Errors
/// The profile does not exist, or overrides a setting that the config lacks.
pub fn narrow(loaded: &mut Loaded, name: &str) -> anyhow::Result<()> {
    let profile = Profile::read(&loaded.base, name)?;
    let mut selected = BTreeMap::new();
    for server in &profile.servers {
        let (known, server) = with_overrides(loaded, &profile, server)
            .with_context(|| format!("the profile `{name}` can't be run"))?;
        selected.insert(known.clone(), server);
    }
    let aside = &mut loaded.aside;
    loaded.config.servers.retain(|name, server| match selected.remove(name) {
        Some(overridden) => {
            aside.push(std::mem::replace(server, overridden));
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

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_catalog::profile_file::Settings;
    use portcullis_config::protected_paths;
    use std::sync::Arc;

    use portcullis_runtime::{MountPolicy, mount::Mount};

    #[test]
    fn sources_replaced_by_a_profile_are_protected_from_servers() {
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
