//! `portcullis.lock`: results that were resolved once and must stay the same.
//!
//! It has the source and the image digest of each server, and the digest of each catalog. Written
//! by commands, read by people, and enforced by `check` and `run`.

use portcullis_foundation::atomic_file;
use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Name of the file, beside the config.
pub const FILE: &str = "portcullis.lock";
/// Maximum size of the file.
const LONGEST: u64 = 8 << 20;
/// Maximum time to wait for another program that changes the file.
const TURN: Duration = Duration::from_secs(10);
/// Maximum number of earlier digests of an image that are kept.
const REMEMBERED: usize = 32;

/// The complete file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lock {
    pub version: u32,
    /// Servers, by their names in the config.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<String, ServerPin>,
    /// Added catalogs, by their local names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub catalogs: BTreeMap<String, CatalogPin>,
}

/// Source and image of a server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerPin {
    /// The reference that was added, if the server was added by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `sha256:` of the description at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// The image as requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its digest in the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Its id on the engine, if it is not from a registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// Earlier digests of its image, under any name, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub was: Vec<String>,
    /// The tools that were enabled when it was added, if not all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// `sha256:` of the policies that were written for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policies: Option<String>,
    /// The policies for its clients that were written with it: `sha256:` by the file, relative to
    /// the config.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub client_policies: BTreeMap<String, String>,
    /// Destination of its deliveries when it was added: the origin of its URL, or its image or
    /// program and the hosts that it reaches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destination: Vec<String>,
    /// The references that the operator named or confirmed for it and that destination, by the name
    /// of the secret or the header.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub confirmed: BTreeMap<String, String>,
    /// The references in its entry when it was added that nobody named or confirmed for that
    /// destination.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unconfirmed: BTreeMap<String, String>,
    /// `sha256:` of the entry as written into the config. Another digest means that it was edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
}

impl ServerPin {
    /// Whether deliveries only go to the destinations from when the server was added.
    #[must_use]
    pub fn has_same_destinations(&self, destination: &[String]) -> bool {
        destination.iter().all(|place| self.destination.contains(place))
    }

    /// Digest or id of the image.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        self.image_digest.as_deref().or(self.image_id.as_deref())
    }

    /// Whether it had this digest earlier, and it was replaced.
    #[must_use]
    pub fn was_once(&self, content: &str) -> bool {
        self.content() != Some(content) && self.was.iter().any(|one| one == content)
    }

    /// Replaces the image. The old digest is remembered even if the name differs now, because an
    /// attacker who restores an old version can choose the name.
    pub fn move_to(&mut self, image: &str, meaning: ResolvedImage) {
        self.leave(Some(meaning.as_str()));
        self.image = Some(image.to_owned());
        (self.image_digest, self.image_id) = match meaning {
            ResolvedImage::Digest(digest) => (Some(digest), None),
            ResolvedImage::Id(id) => (None, Some(id)),
        };
    }

    /// Remembers the present digest, if it changes or is removed.
    fn leave(&mut self, to: Option<&str>) {
        if let Some(before) = self.content().map(str::to_owned)
            && Some(&*before) != to
        {
            remember(&mut self.was, before);
        }
    }
}

fn remember(was: &mut Vec<String>, before: String) {
    was.retain(|one| *one != before);
    was.push(before);
    let more = was.len().saturating_sub(REMEMBERED);
    was.drain(..more);
}

/// A resolved image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolvedImage {
    /// Digest in its registry.
    Digest(String),
    /// Id on the engine, if it is not from a registry.
    Id(String),
}

impl ResolvedImage {
    /// `sha256:…`
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Digest(text) | Self::Id(text) => text,
        }
    }
}

/// A catalog with a local copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CatalogPin {
    pub source: String,
    /// `sha256:` of the copy.
    pub digest: String,
    /// Digest of the manifest, if it came from a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// The digests of earlier copies, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub was: Vec<String>,
}

impl CatalogPin {
    /// Whether its copy had this digest earlier, and it was replaced.
    #[must_use]
    pub fn was_once(&self, digest: &str) -> bool {
        self.digest != digest && self.was.iter().any(|one| one == digest)
    }

    /// The pin of a newer copy, which remembers the digest of this one.
    #[must_use]
    pub fn follow(self, mut next: Self) -> Self {
        next.was = self.was;
        if self.digest != next.digest {
            remember(&mut next.was, self.digest);
        }
        next
    }
}

/// An unusable lock file.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot read {path}: {why}")]
    Read { path: String, why: String },
    #[error("cannot write {path}: {why}")]
    Write { path: String, why: String },
    #[error("{path} is being changed by another program, and has been for {}s", TURN.as_secs())]
    Busy { path: String },
    #[error("{path} is of version {version}, which this program does not know")]
    Version { path: String, version: u32 },
    #[error(
        "the image of `{server}` is {config} in the config and {lock} in the lock file: if the change is \
         meant, say so: `portcullis server lock {server}`"
    )]
    Image { server: String, config: String, lock: String },
    #[error(
        "the image of `{server}` is `{config}` in the config, and what is locked is `{lock}`: if the change is \
         meant, say so: `portcullis server lock {server}`"
    )]
    Name { server: String, config: String, lock: String },
    #[error(
        "the image of `{server}` is {} in the lock file by now, where it was {}: somebody locked it meanwhile; \
         see that it is what you mean, and try again",
        known(.is), known(.was)
    )]
    ChangedMeanwhile { server: String, is: Option<String>, was: Option<String> },
}

fn known(content: &Option<String>) -> &str {
    content.as_deref().unwrap_or("not locked")
}

const VERSION: u32 = 1;

impl Lock {
    /// Reads the lock file beside a config. A missing file is empty.
    ///
    /// # Errors
    /// If it exists and cannot be read.
    pub fn read(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(FILE);
        let shown = || path.display().to_string();
        let text = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { version: VERSION, ..Self::default() });
            }
            Ok(meta) if meta.len() > LONGEST => {
                return Err(LockError::Read { path: shown(), why: "it is too large".into() });
            }
            _ => std::fs::read_to_string(&path)
                .map_err(|error| LockError::Read { path: shown(), why: error.to_string() })?,
        };
        let lock: Self = toml::from_str(&text).map_err(|error| LockError::Read {
            path: shown(),
            why: error.to_string().trim().to_owned(),
        })?;
        if lock.version != VERSION {
            return Err(LockError::Version { path: shown(), version: lock.version });
        }
        Ok(lock)
    }

    /// Text of the file for that folder.
    ///
    /// # Errors
    /// If it could not be read again, since no server would start then.
    pub fn text(&self, folder: &Path) -> Result<String, LockError> {
        let path = folder.join(FILE);
        let body = toml::to_string(self).map_err(|error| LockError::Write {
            path: path.display().to_string(),
            why: error.to_string(),
        })?;
        let text = format!(
            "# Written by `portcullis server` and `portcullis catalog`. Keep it with the config.\n{body}"
        );
        if text.len() as u64 > LONGEST {
            return Err(LockError::Write {
                path: path.display().to_string(),
                why: "it would be too large".into(),
            });
        }
        Ok(text)
    }

    /// Writes the file atomically.
    fn write(&self, folder: &Path) -> Result<(), LockError> {
        let (path, text) = (folder.join(FILE), self.text(folder)?);
        atomic_file::replace(&path, text.as_bytes()).map_err(|error| LockError::Write {
            path: path.display().to_string(),
            why: error.to_string(),
        })
    }

    /// Changes the file and returns the new content. Other writers wait.
    ///
    /// # Errors
    /// If it cannot be read or written. The file is then unchanged.
    pub fn change(folder: &Path, change: impl FnOnce(&mut Self)) -> Result<Self, LockError> {
        let shown = || folder.join(FILE).display().to_string();
        let failed = |why: std::io::Error| LockError::Write { path: shown(), why: why.to_string() };
        // The folder is locked, because the file is replaced.
        let turn = File::open(folder).map_err(failed)?;
        let since = Instant::now();
        loop {
            match turn.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if since.elapsed() < TURN => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return Err(LockError::Busy { path: shown() }),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        let before = Self::read(folder)?;
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            after.write(folder)?;
        }
        Ok(after)
    }

    /// Replaces the image of a server, if the present one is `was` or already the new one.
    ///
    /// # Errors
    /// [`LockError::ChangedMeanwhile`], if it has changed. Nothing is changed then.
    pub fn move_from(
        &mut self,
        server: &str,
        image: &str,
        was: Option<&str>,
        to: ResolvedImage,
    ) -> Result<(), LockError> {
        let is = self.servers.get(server).and_then(ServerPin::content);
        if is != was && is != Some(to.as_str()) {
            let (is, was) = (is.map(str::to_owned), was.map(str::to_owned));
            return Err(LockError::ChangedMeanwhile { server: server.to_owned(), is, was });
        }
        self.servers.entry(server.to_owned()).or_default().move_to(image, to);
        Ok(())
    }

    /// Records an added or updated server, if the present image is still `was`.
    ///
    /// # Errors
    /// As [`Lock::move_from`].
    pub fn take(
        &mut self,
        server: &str,
        was: Option<&str>,
        taken: &ServerPin,
    ) -> Result<(), LockError> {
        let meaning = match (&taken.image_digest, &taken.image_id) {
            (Some(digest), _) => Some(ResolvedImage::Digest(digest.clone())),
            (None, id) => id.clone().map(ResolvedImage::Id),
        };
        if let (Some(image), Some(meaning)) = (&taken.image, &meaning) {
            self.move_from(server, image, was, meaning.clone())?;
        }
        let locked = self.servers.entry(server.to_owned()).or_default();
        if meaning.is_none() {
            locked.leave(None);
            (locked.image, locked.image_digest, locked.image_id) =
                (taken.image.clone(), None, None);
        }
        locked.source.clone_from(&taken.source);
        locked.source_digest.clone_from(&taken.source_digest);
        locked.tools.clone_from(&taken.tools);
        locked.entry.clone_from(&taken.entry);
        locked.destination.clone_from(&taken.destination);
        locked.confirmed.clone_from(&taken.confirmed);
        locked.unconfirmed.clone_from(&taken.unconfirmed);
        if taken.policies.is_some() {
            locked.policies.clone_from(&taken.policies);
        }
        if !taken.client_policies.is_empty() {
            locked.client_policies.clone_from(&taken.client_policies);
        }
        Ok(())
    }

    /// The resolved image of the config, if it was resolved under exactly this name.
    #[must_use]
    pub fn meaning(&self, server: &str, image: &str) -> Option<ResolvedImage> {
        let locked = self.servers.get(server).filter(|one| one.image.as_deref() == Some(image))?;
        match (&locked.image_digest, &locked.image_id) {
            (Some(digest), _) => Some(ResolvedImage::Digest(digest.clone())),
            (None, Some(id)) => Some(ResolvedImage::Id(id.clone())),
            (None, None) => None,
        }
    }

    /// Checks an image of the config against the lock.
    ///
    /// # Errors
    /// [`LockError::Image`] or [`LockError::Name`], if the lock has another digest or name for the
    /// server. Only a person can change the lock.
    pub fn hold(&self, server: &str, image: &str) -> Result<(), LockError> {
        let Some(locked) = self.servers.get(server) else { return Ok(()) };
        let Some(content) = locked.content() else { return Ok(()) };
        let by_content = match image.rsplit_once('@') {
            Some((_, digest)) => Some(digest),
            None => Some(image).filter(|image| image.starts_with("sha256:")),
        };
        let server = server.to_owned();
        match by_content {
            Some(config) if config == content => Ok(()),
            Some(config) => {
                let (config, lock) = (config.to_owned(), content.to_owned());
                Err(LockError::Image { server, config, lock })
            }
            // The lock resolves the name.
            None if locked.image.as_deref() == Some(image) => Ok(()),
            None => {
                let lock = locked.image.clone().unwrap_or_else(|| content.to_owned());
                Err(LockError::Name { server, config: image.to_owned(), lock })
            }
        }
    }
}

/// The author of a description: its source without tag and digest, and for a catalog without the
/// chosen servers.
#[must_use]
pub fn origin(source: &str) -> &str {
    let Some((scheme, rest)) = source.split_once("://") else { return source };
    let rest = match scheme {
        // An id of the engine is complete; it has neither tag nor digest.
        "docker" if rest.starts_with("sha256:") => return source,
        "docker" | "oci" => rest,
        "catalog" => rest.rsplit_once('/').map_or(rest, |(catalog, _)| catalog),
        _ => return source,
    };
    let name = rest.split('@').next().unwrap_or(rest);
    let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
    &source[..scheme.len() + 3 + tag.unwrap_or(name.len())]
}

/// Whether two sources are equal, except for tag and digest. Text from a pipe has no source.
#[must_use]
pub fn same_origin(one: &str, other: &str) -> bool {
    origin(one) == origin(other) && !["/dev/", "/proc/"].iter().any(|pipe| one.starts_with(pipe))
}

/// `sha256:` and the digest of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_file_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Lock::read(folder.path()).unwrap().servers.is_empty());
        let locked = ServerPin {
            source: Some("docker://a/b:1".into()),
            source_digest: Some(digest(b"x")),
            image: Some("a/b:1".into()),
            image_digest: Some(digest(b"y")),
            ..ServerPin::default()
        };
        let pin = CatalogPin {
            source: "x".into(),
            digest: digest(b"z"),
            manifest: None,
            was: Vec::new(),
        };
        let lock = Lock::change(folder.path(), |lock| {
            lock.servers.insert("b".into(), locked);
            lock.catalogs.insert("c".into(), pin);
        });
        let lock = lock.unwrap();
        assert_eq!(Lock::read(folder.path()).unwrap(), lock);

        lock.hold("b", &format!("a/b:1@{}", digest(b"y"))).unwrap();
        lock.hold("other", "a/b:1").unwrap();
        lock.hold("b", "a/b:1").unwrap();
        for (image, held) in [
            (format!("a/b@{}", digest(b"y")), true),
            (digest(b"y"), true),
            (format!("a/b@{}", digest(b"n")), false),
            (digest(b"n"), false),
            ("a/b:2".to_owned(), false),
            ("a/c:1".to_owned(), false),
        ] {
            assert_eq!(lock.hold("b", &image).is_ok(), held, "{image}");
        }

        for broken in ["version = 2\n", "version = 1\nother = 2\n", "servers = 1", "\u{0}"] {
            std::fs::write(folder.path().join(FILE), broken).unwrap();
            Lock::read(folder.path()).unwrap_err();
        }
    }

    #[test]
    fn oversized_lock_file_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        Lock::change(folder.path(), |lock| {
            drop(lock.servers.insert("a".into(), ServerPin::default()))
        })
        .unwrap();
        let before = Lock::read(folder.path()).unwrap();
        let failed = Lock::change(folder.path(), |lock| {
            let tools = Some(vec!["x".repeat(9 << 20)]);
            lock.servers.insert("b".into(), ServerPin { tools, ..ServerPin::default() });
        });
        assert!(failed.unwrap_err().to_string().contains("too large"));
        assert_eq!(Lock::read(folder.path()).unwrap(), before);
    }

    #[test]
    fn sources_are_compared_without_versions() {
        for (one, other, same) in [
            ("docker://a.example/b:1", "docker://a.example/b@sha256:00", true),
            ("docker://a.example:5000/b", "docker://a.example:5000/b:2@sha256:00", true),
            ("oci://a.example/team:1", "oci://a.example/team:2", true),
            (
                "catalog://a.example:5000/team:1/x",
                "catalog://a.example:5000/team@sha256:00/x+y",
                true,
            ),
            ("catalog://team/x", "catalog://team/y", true),
            ("catalog://team/x", "catalog://other/x", false),
            ("catalog://a.example/team:1/x", "oci://a.example/team:1", false),
            ("oci://a.example:5000/team:1", "oci://a.example:6000/team:1", false),
            ("docker://a.example/b:1", "docker://a.example/c:1", false),
            ("docker://sha256:00", "docker://sha256:11", false),
            ("https://a.example/x:1", "https://a.example/x:2", false),
            ("team.yaml", "team.yaml", true),
            ("team.yaml", "other.yaml", false),
            ("/dev/stdin", "/dev/stdin", false),
        ] {
            assert_eq!(same_origin(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn previous_digests_are_recorded() {
        let (one, two) = (digest(b"1"), digest(b"2"));
        let mut locked = ServerPin::default();
        locked.move_to("a:1", ResolvedImage::Digest(one.clone()));
        assert!(locked.was.is_empty());
        locked.move_to("a:1", ResolvedImage::Digest(one.clone()));
        assert!(locked.was.is_empty());
        locked.move_to("a:1", ResolvedImage::Digest(two.clone()));
        assert_eq!((locked.content(), &*locked.was), (Some(&*two), &[one.clone()][..]));
        locked.move_to("a:1", ResolvedImage::Digest(one.clone()));
        assert_eq!(locked.was, [one.clone(), two.clone()]);
        assert!(locked.was_once(&two) && !locked.was_once(&one), "what it is, it never left");
        // Under any name: a tag, a digest, another name.
        locked.move_to("a:2", ResolvedImage::Id(two.clone()));
        assert!(locked.was == [two.clone(), one.clone()] && locked.image_digest.is_none());
        locked.move_to(&format!("b@{one}"), ResolvedImage::Digest(one.clone()));
        assert!(locked.was_once(&two) && !locked.was_once(&one));
        locked.move_to("a:2", ResolvedImage::Id(two.clone()));

        let mut lock = Lock::default();
        lock.servers.insert("s".into(), locked);
        assert_eq!(lock.meaning("s", "a:2"), Some(ResolvedImage::Id(two)));
        assert_eq!(lock.meaning("s", "a:1"), None);
        assert_eq!(lock.meaning("t", "a:2"), None);
    }

    #[test]
    fn imported_digests_are_recorded_too() {
        let [one, two, three] = [b"1", b"2", b"3"].map(|bytes| digest(bytes));
        let of = |digest: Option<&String>| ServerPin {
            source: Some("catalog://x/s".into()),
            image: digest.map(|digest| format!("a@{digest}")),
            image_digest: digest.cloned(),
            ..ServerPin::default()
        };
        let mut lock = Lock::default();
        lock.take("s", None, &of(Some(&one))).unwrap();
        lock.take("s", Some(&one), &of(Some(&two))).unwrap();
        assert!(lock.servers["s"].was_once(&one));
        // It temporarily has no image.
        lock.take("s", Some(&two), &of(None)).unwrap();
        assert_eq!((lock.servers["s"].content(), &lock.servers["s"].image), (None, &None));
        assert!(lock.servers["s"].was_once(&one) && lock.servers["s"].was_once(&two));
        lock.take("s", None, &of(Some(&three))).unwrap();
        assert!(lock.servers["s"].was_once(&two) && !lock.servers["s"].was_once(&three));
        // Another program has changed it.
        lock.take("s", Some(&two), &of(Some(&one))).unwrap_err();
        assert_eq!(lock.servers["s"].content(), Some(&*three));
    }

    #[test]
    fn concurrently_changed_pin_is_not_moved() {
        let [one, two, three] = [b"1", b"2", b"3"].map(|bytes| digest(bytes));
        // The expected image, the present one, and whether it is moved to the third.
        for (was, is, moves) in [
            (None, None, true),
            (Some(&one), Some(&one), true),
            (None, Some(&one), false),
            (Some(&one), Some(&two), false),
            (Some(&one), None, false),
            (None, Some(&three), true),
            (Some(&one), Some(&three), true),
        ] {
            let mut lock = Lock::default();
            if let Some(is) = is {
                lock.servers
                    .entry("s".into())
                    .or_default()
                    .move_to("a:1", ResolvedImage::Digest(is.clone()));
            }
            let before = lock.clone();
            let to = ResolvedImage::Digest(three.clone());
            let moved = lock.move_from("s", "a:1", was.map(String::as_str), to.clone());
            assert_eq!(moved.is_ok(), moves, "{was:?} {is:?}");
            match moves {
                true => assert_eq!(lock.meaning("s", "a:1"), Some(to)),
                false => assert_eq!(lock, before),
            }
        }
    }

    #[test]
    fn concurrent_changes_are_all_written() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..8 {
                let folder = folder.path();
                scope.spawn(move || {
                    let insert = |lock: &mut Lock| {
                        lock.servers.insert(n.to_string(), ServerPin::default());
                    };
                    Lock::change(folder, insert).unwrap();
                });
            }
        });
        assert_eq!(Lock::read(folder.path()).unwrap().servers.len(), 8);
    }
}
