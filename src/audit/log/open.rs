//! Opening of a store: its identity, its lock, and the check that it continues the signed log.

use std::{io, path::Path, sync::Arc, time::Duration};

use crate::{
    digest::DigestKey,
    maintenance::{self, Cipher, Keys, Manifest, ManifestFault},
    proof::{self, Continuity},
    store::{
        Fault, IndexTrust, Lock, LockRefused, Mode, Opened, Opening, SegmentSet, first_segment,
    },
    unavailable::Unavailable,
};

pub(super) fn broken(dir: &Path) -> impl Fn(io::Error) -> Unavailable {
    let dir = dir.to_owned();
    move |error| Unavailable::Broken { dir: dir.clone(), why: error.to_string() }
}

pub(super) fn unfit(dir: &Path) -> impl Fn(ManifestFault) -> Unavailable {
    let dir = dir.to_owned();
    move |fault| Unavailable::Unfit { dir: dir.clone(), why: fault.to_string() }
}

/// Manifest and cipher of the store, if these keys are the right ones.
pub(super) fn identify(
    dir: &Path,
    keys: Option<&Keys>,
) -> Result<(Manifest, Option<Arc<Cipher>>), Unavailable> {
    let unfit_for = |why: String| Unavailable::Unfit { dir: dir.to_owned(), why };
    if maintenance::is_unfinished(dir) {
        return Err(unfit_for("it is an interrupted backup: run the backup again".into()));
    }
    if let Some((path, mode)) = maintenance::open_to_others(dir).map_err(broken(dir))? {
        return Err(unfit_for(format!(
            "others can write to {} (mode {mode:o}), and could have changed records: verify the \
             log, then `chmod -R go-rwx` the folder",
            path.display()
        )));
    }
    let manifest = Manifest::open(dir).map_err(unfit(dir))?;
    let cipher = keys
        .map(|keys| keys.cipher(&manifest))
        .transpose()
        .map_err(|fault| unfit_for(fault.to_string()))?;
    let first = first_segment(dir).map_err(broken(dir))?;
    manifest.admit(cipher.as_ref(), first).map_err(unfit(dir))?;
    Ok((manifest, cipher.map(Arc::new)))
}

pub(super) fn lock(dir: &Path, deadline: Duration) -> Result<Lock, Unavailable> {
    Lock::take(dir, deadline).map_err(|refused| match refused {
        LockRefused::Held(pid) => Unavailable::Locked { dir: dir.to_owned(), pid },
        LockRefused::Io(error) => broken(dir)(error),
    })
}

/// Opens the files of a store for writing. Also returns the reason, if any, not to sign: the
/// tree does not continue what was signed last, or contradicts the records.
pub(super) fn open_segment_set(
    dir: &Path,
    state: &Path,
    key: &DigestKey,
    cipher: Option<&Arc<Cipher>>,
) -> Result<(Opened, Option<String>), Fault> {
    let keys = proof::known_keys(state, dir);
    let dropped = |first| proof::dropped_before(dir, &keys, first);
    let open = |trust, earlier_damage| {
        let (key, cipher, mode) = (key.clone(), cipher.cloned(), Mode::Write);
        SegmentSet::open(
            dir,
            Opening { key, cipher, mode, trust, earlier_damage, dropped: &dropped },
        )
    };
    let stands = |opened: &Opened| {
        let view = opened.segment_set.view();
        proof::goes_on(dir, &keys, state, &opened.segment_set, &view)
    };
    let opened = open(IndexTrust::Believe, None)?;
    let why = match stands(&opened) {
        Continuity::Yes => {
            let groundless = opened.groundless.clone();
            return Ok((opened, groundless));
        }
        Continuity::Shorter => "it ends before records that were signed".to_owned(),
        Continuity::No(why) => why,
    };
    tracing::error!(
        why,
        "audit log does not continue from its newest checkpoint; rebuilding the tree and the \
         indexes from its records"
    );
    let damage = opened.segment_set.damage().to_vec();
    drop(opened);
    let reopened = open(IndexTrust::Doubt, Some(damage))?;
    match stands(&reopened) {
        // The loss is recorded, and the log continues with the remaining records.
        Continuity::Yes | Continuity::Shorter => {
            let groundless = reopened.groundless.clone();
            Ok((reopened, groundless))
        }
        Continuity::No(why) => {
            let damage = reopened.segment_set.damage().to_vec();
            drop(reopened);
            Ok((open(IndexTrust::Believe, Some(damage))?, Some(why)))
        }
    }
}
