//! Local store of pulled artifacts, by digest.

use std::{
    fs::{DirBuilder, File},
    io::{self, Read as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{Client, Descriptor, Digest, Error, Limits, Pulled, Reference, client::read};
use portcullis_foundation::atomic_file;

/// Folder of content, with each file named by its digest. Content is verified at each read: a user
/// who can write there can remove content but not replace it.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// Manifest with its wanted blobs.
type StoredImage = (Pulled, Vec<(Descriptor, Bytes)>);

impl Store {
    /// Store in this folder, which is created when something is stored.
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Folder of the store.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Manifest that the reference is pinned to, and its wanted blobs: from the store, or, if
    /// something is missing, from its registry and then stored. The flag says whether a registry
    /// was contacted.
    ///
    /// # Errors
    /// As [`Client::pull`]; if stored content was changed, or nothing can be stored.
    pub async fn pull(
        &self,
        client: &Client,
        reference: &Reference,
        limits: &Limits,
        wanted: impl Fn(&Descriptor) -> bool,
    ) -> Result<(Pulled, Vec<(Descriptor, Bytes)>, bool), Error> {
        if let Some((pulled, blobs)) = self.find(reference, limits, &wanted)? {
            return Ok((pulled, blobs, false));
        }
        let (pulled, blobs) = client.pull(reference, &wanted).await?;
        // The manifest last: if it exists, so does all that it needs.
        for (one, bytes) in &blobs {
            self.put(one.digest, bytes)?;
        }
        self.put(pulled.digest, &pulled.bytes)?;
        Ok((pulled, blobs, true))
    }

    /// Same from the store only; `None` if something is missing.
    ///
    /// # Errors
    /// If the reference is not pinned, or stored content was changed.
    pub fn find(
        &self,
        reference: &Reference,
        limits: &Limits,
        wanted: impl Fn(&Descriptor) -> bool,
    ) -> Result<Option<StoredImage>, Error> {
        let digest = reference.digest().ok_or_else(|| Error::Unpinned(reference.to_string()))?;
        let Some(bytes) = self.get(digest, limits.manifest)? else { return Ok(None) };
        let manifest = read(reference, digest, &bytes, limits)?;
        let all = std::iter::once(&manifest.config).chain(&manifest.layers);
        let mut blobs = Vec::new();
        let mut remaining = limits.blobs;
        for one in all.filter(|one| wanted(one)) {
            let Some(bytes) = self.get(one.digest, one.size.min(remaining))? else {
                return Ok(None);
            };
            remaining -= bytes.len() as u64;
            blobs.push((one.clone(), bytes));
        }
        Ok(Some((Pulled { digest, bytes, manifest }, blobs)))
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join("sha256").join(digest.hex())
    }

    fn failed(&self, why: io::Error) -> Error {
        Error::Store { folder: self.folder.display().to_string(), why }
    }

    fn get(&self, digest: Digest, most: u64) -> Result<Option<Bytes>, Error> {
        let file = match File::open(self.path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(most.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed(error))?;
        if bytes.len() as u64 > most || Digest::of(&bytes) != digest {
            let folder = self.folder.display().to_string();
            return Err(Error::Changed { digest, folder });
        }
        Ok(Some(bytes.into()))
    }

    fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(digest);
        let write = || {
            let folder = path.parent().unwrap_or(&self.folder);
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            atomic_file::write(&path, bytes)
        };
        write().map_err(|error| self.failed(error))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn stored_content_is_private_and_verified() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("kept"));
        let digest = Digest::of(b"content");
        assert!(store.get(digest, 100).unwrap().is_none());
        store.put(digest, b"content").unwrap();
        assert_eq!(store.get(digest, 7).unwrap().unwrap(), b"content"[..]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path(digest)), 0o600);
        assert_eq!(mode(store.folder()), 0o700);
        assert!(matches!(store.get(digest, 6), Err(Error::Changed { .. })));
        fs::write(store.path(digest), b"changed").unwrap();
        assert!(matches!(store.get(digest, 100), Err(Error::Changed { .. })));
    }
}
