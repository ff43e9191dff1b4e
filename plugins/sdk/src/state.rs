//! Values that outlive an instance and the proxy. They belong to the plugin's entry in the config and
//! to nobody else. A key has 1 to 256 bytes, a value at most 64 KiB.
//!
//! Instances run side by side: what counts or changes a value uses [`add`] or [`update`], not [`get`]
//! and [`set`].

use serde::{Serialize, de::DeserializeOwned};

use super::{Fault, bindings::portcullis::interceptor::state as host};

pub use host::Error;

/// The value of a key.
///
/// # Errors
/// The host's.
pub fn get(key: &str) -> Result<Option<Vec<u8>>, Error> {
    host::get(key)
}

/// Puts a value there.
///
/// # Errors
/// The host's: most of all [`Error::Full`].
pub fn set(key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
    host::set(key, value.as_ref())
}

/// The value of a key, read from JSON.
///
/// # Errors
/// The host's, or the value is not of this type.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>, Fault> {
    Ok(match get(key)? {
        Some(bytes) => Some(serde_json::from_slice(&bytes)?),
        None => None,
    })
}

/// Puts a value there as JSON.
///
/// # Errors
/// The host's, or the value cannot be written as JSON.
pub fn set_json<T: Serialize>(key: &str, value: &T) -> Result<(), Fault> {
    Ok(set(key, serde_json::to_vec(value)?)?)
}

/// Takes the value of a key away.
///
/// # Errors
/// The host's.
pub fn delete(key: &str) -> Result<(), Error> {
    host::delete(key)
}

/// Adds to a counter, which begins with 0, and gives what it came to.
///
/// # Errors
/// The host's: most of all [`Error::NotANumber`].
pub fn add(key: &str, delta: i64) -> Result<i64, Error> {
    host::add(key, delta)
}

/// Puts `new` there (`None`: takes it away) if `old` is what is there, and says whether it was.
///
/// # Errors
/// The host's.
pub fn swap(key: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<bool, Error> {
    host::swap(key, old, new)
}

/// Changes a value whatever others do meanwhile: `change` makes the new one of the one that is there
/// (`None`: there is none, or there should be none), and is asked again if that changed meanwhile.
/// Gives what is there now.
///
/// # Errors
/// The host's.
pub fn update(
    key: &str,
    mut change: impl FnMut(Option<&[u8]>) -> Option<Vec<u8>>,
) -> Result<Option<Vec<u8>>, Error> {
    loop {
        let old = get(key)?;
        let new = change(old.as_deref());
        if swap(key, old.as_deref(), new.as_deref())? {
            return Ok(new);
        }
    }
}

/// All keys that begin so, in order.
///
/// # Errors
/// The host's.
pub fn keys(prefix: &str) -> Result<Vec<String>, Error> {
    let mut all = Vec::new();
    loop {
        let more = keys_after(prefix, all.last().map(String::as_str))?;
        if more.is_empty() {
            return Ok(all);
        }
        all.extend(more);
    }
}

/// Keys that begin so, in order, at most 1000: those behind `after`.
///
/// # Errors
/// The host's.
pub fn keys_after(prefix: &str, after: Option<&str>) -> Result<Vec<String>, Error> {
    host::keys(prefix, after)
}
