//! Single values of the config: reading and setting.
//!
//! Invariant: a value that the checks refuse, or that may be a secret, is not written.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::InvalidInput;
use portcullis_catalog::{
    brief,
    write::{parse_key, set_key},
};
use portcullis_config::{Code, Diagnostics, Loaded};
use portcullis_foundation::atomic_file;
use portcullis_protocol::names::nearest;

/// Value of a dotted key, as the proxy uses it: the file's, or the default. `None`: it is not set and
/// has no default.
///
/// # Errors
/// The config has no such key.
pub fn get(loaded: &Loaded, key: &str) -> anyhow::Result<Option<Value>> {
    let keys = parse_key(key).map_err(|error| InvalidInput(error.to_string()))?;
    let mut value = serde_json::to_value(&loaded.config)?;
    for (name, server) in &loaded.disabled {
        value["servers"][name.as_str()] = serde_json::to_value(server)?;
    }
    for part in &keys {
        let inner = match &value {
            Value::Object(table) => table.get(part),
            Value::Array(items) => part.parse().ok().and_then(|at: usize| items.get(at)),
            _ => None,
        };
        value = match inner {
            Some(inner) => inner.clone(),
            None => {
                let names = value.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
                let near = nearest(part, names);
                let near =
                    near.first().map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                bail!(
                    "{} has no key `{}`: there is no `{}`{near}",
                    loaded.path.display(),
                    brief(key),
                    brief(part)
                )
            }
        };
    }
    Ok(Some(value).filter(|value| !value.is_null()))
}

/// Sets a dotted key. The value is TOML, or else text. Returns whether the config changed.
///
/// # Errors
/// The findings of the config with the value.
pub fn set(path: &Path, key: &str, value: &str) -> anyhow::Result<bool> {
    let keys = parse_key(key).map_err(|error| InvalidInput(error.to_string()))?;
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let secrets_before = literal_secrets(&portcullis_config::parse(path, &text));
    let as_text = toml::Value::String(value.to_owned()).to_string();
    // `8` may be meant as text, where the key takes text.
    let mut refused = None;
    for value in [value, as_text.as_str()] {
        let Ok(changed) = set_key(&text, &keys, value) else { continue };
        let parsed = portcullis_config::parse(path, &changed);
        if literal_secrets(&parsed) > secrets_before {
            return Err(InvalidInput(format!(
                "the value of `{key}` looks like a secret: write a reference (`secrets`, `headers`), never the value"
            ))
            .into());
        }
        match parsed {
            Ok(_) if changed == text => return Ok(false),
            Ok(_) => {
                atomic_file::replace(path, changed.as_bytes())
                    .with_context(|| format!("cannot write {}", path.display()))?;
                return Ok(true);
            }
            Err(findings) => refused = refused.or(Some(findings)),
        }
    }
    match refused {
        Some(findings) => Err(InvalidInput(format!(
            "`{key}` cannot have this value, and {} is not changed: {findings}",
            path.display()
        ))
        .into()),
        None => Err(set_key(&text, &keys, &as_text).map_or_else(
            |error| InvalidInput(error.to_string()),
            |_| InvalidInput(format!("`{key}` cannot be set")),
        ))?,
    }
}

/// Number of secrets in plain text.
fn literal_secrets(parsed: &Result<Loaded, Diagnostics>) -> usize {
    let findings = match parsed {
        Ok(loaded) => &loaded.warnings,
        Err(Diagnostics(findings)) => findings,
    };
    findings.iter().filter(|finding| finding.code == Code::LiteralSecret).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_the_one_in_use() {
        let text =
            "[servers.a]\ncommand = [\"a\"]\nenabled = false\n[listen]\nhttp = \"127.0.0.1:1\"\n";
        let loaded = portcullis_config::parse(Path::new("/f/portcullis.toml"), text).unwrap();
        let get = |key| get(&loaded, key).unwrap();
        assert_eq!(get("listen.http"), Some("127.0.0.1:1".into()));
        assert_eq!(get("approvals.timeout-s"), Some(300.into()));
        assert_eq!(get("servers.a.enabled"), Some(false.into()));
        assert_eq!(get("servers.a.command.0"), Some("a".into()));
        assert_eq!(get("servers.a.image"), None);
        let error = super::get(&loaded, "listen.htpp").unwrap_err().to_string();
        assert!(error.contains("did you mean `http`?"), "{error}");
    }

    #[test]
    fn invalid_value_and_possible_secret_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("portcullis.toml");
        let text = "# Mine\n[servers.a] # here\ncommand = [\"a\"]\nenv = { LEVEL = \"1\" }\n";
        fs::write(&path, text).unwrap();
        let secret = ["AbC9", "dEf8", "GhI7", "jKl6", "MnO5"].concat();
        for (key, value) in [
            ("listen.http", "nowhere"),
            ("servers.a.call-timeout-s", "0"),
            ("servers.b.nonsense", "1"),
            ("servers", "1"),
            ("servers..a", "1"),
            ("servers.a.env.API_KEY", &*secret),
        ] {
            let error = set(&path, key, value).unwrap_err();
            assert!(error.is::<InvalidInput>(), "{key}: {error:#}");
            assert!(!error.to_string().contains(&secret), "{error:#}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "{key}");
        }
        assert!(set(&path, "servers.a.call-timeout-s", "9").unwrap());
        assert!(!set(&path, "servers.a.call-timeout-s", "9").unwrap());
        // A number where the key takes text.
        assert!(set(&path, "servers.a.env.LEVEL", "2").unwrap());
        assert!(set(&path, "listen.http", "127.0.0.1:9").unwrap());
        let now = fs::read_to_string(&path).unwrap();
        assert!(now.starts_with("# Mine\n[servers.a] # here\n"), "{now}");
        let loaded = portcullis_config::load(&path).unwrap();
        assert_eq!(get(&loaded, "servers.a.env.LEVEL").unwrap(), Some("2".into()));
        assert_eq!(get(&loaded, "listen.http").unwrap(), Some("127.0.0.1:9".into()));
    }
}
