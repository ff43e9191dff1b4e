//! Checks of the config against the lock file beside it.

use portcullis_catalog::{lock::Lock, own_variables};
use portcullis_config::Loaded;
use portcullis_upstream::images;

/// Checks that each pinned image in the lock file is the image that the config runs.
///
/// # Errors
/// The config and the lock file disagree, or the lock file cannot be read.
pub fn check_pins(loaded: &Loaded) -> Result<(), Vec<(String, String)>> {
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

/// Unconfirmed references to variables of the proxy, each with its position in the config. They are
/// in entries without a recorded destination: an earlier version let descriptions choose variables.
pub fn unconfirmed(loaded: &Loaded) -> Vec<(String, String)> {
    // `held` reports a lock file that cannot be read.
    let lock = Lock::read(&loaded.base).unwrap_or_default();
    let mut found = Vec::new();
    for (name, server) in &loaded.config.servers {
        let Some(locked) = lock.servers.get(name.as_str()) else { continue };
        if locked.source.is_none() || !locked.destination.is_empty() {
            continue;
        }
        let own = format!("env:{}", own_variables(name.as_str()));
        let secrets = server.secrets.iter().map(|(of, secret)| ("secrets", of, &secret.from));
        let headers = server.headers.iter().map(|(of, header)| ("headers", of, &header.from));
        for (table, of, from) in secrets.chain(headers) {
            let Some(from) = from.as_deref() else { continue };
            if from.starts_with("env:") && !from.starts_with(&own) {
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

/// Prevents images with a tag that is not locked from running, from now on.
///
/// # Errors
/// The images that are not locked.
pub fn apply(loaded: &mut Loaded) -> Result<(), Vec<(String, String)>> {
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
