//! Checks that the engine mounted the sources that were checked.
//!
//! A source is checked here by its path, and the engine resolves that path again when it starts the
//! container. In between, a process that can write to a folder above it (for example, a server with
//! that folder mounted) can replace it by a link to anything.
//!
//! An engine mounts when it starts the program, so the program already runs during this check. If a
//! mount differs, the program is ended within moments of its start.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    sync::Once,
};

use bollard::Docker;

use crate::{mount::Mount, process::LaunchFailure};

use super::{Fault, failure};

/// Folder of a file system as the kernel names it: the device, and the path from its root.
#[derive(Debug, PartialEq, Eq)]
struct MountOrigin {
    device: String,
    path: PathBuf,
}

/// Fields of one line of proc_pid_mountinfo(5).
#[derive(Debug)]
struct Mounted {
    origin: MountOrigin,
    at: PathBuf,
}

/// Checks the mounts of a running container.
///
/// If the engine's processes are not visible from here, this checks only that the sources are not
/// links now.
///
/// # Errors
/// If a mount is not the checked one.
pub(super) async fn mounts(
    docker: &Docker,
    id: &str,
    checked: &[Mount],
) -> Result<(), LaunchFailure> {
    if checked.is_empty() {
        return Ok(());
    }
    let container = docker.inspect_container(id, None).await.map_err(|error| {
        let fault = Fault::of("report the container's process")(error);
        failure(fault.to_string(), "check the engine: `portcullis doctor`")
    })?;
    let pid = container.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
    let (id, checked) = (id.to_owned(), checked.to_vec());
    // A folder on a file server that does not answer blocks only this launch.
    let looking = tokio::task::spawn_blocking(move || compare(pid, &id, &checked)).await;
    looking.map_err(|_| failure("its mounts could not be checked", "try again"))?
}

fn compare(pid: Option<i64>, id: &str, checked: &[Mount]) -> Result<(), LaunchFailure> {
    let inside = pid.and_then(|pid| seen(pid, id));
    if inside.is_none() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tracing::warn!(
                "the engine's processes are not visible from here, so mounts are verified by path \
                 only: run the proxy as root on the engine's machine to verify them fully"
            );
        });
    }
    let here = fs::read("/proc/self/mountinfo").map(|text| parsed(&text)).unwrap_or_default();
    for mount in checked {
        let same = match &inside {
            Some(inside) => {
                // The last mount covers earlier ones.
                let found = inside.iter().rev().find(|mounted| mounted.at == mount.target);
                found.is_some_and(|m| origin(&here, &mount.source).is_some_and(|p| p == m.origin))
            }
            None => fs::canonicalize(&mount.source).is_ok_and(|source| source == mount.source),
        };
        if !same {
            return Err(failure(
                format!(
                    "the mount at {} is not the one that was checked: {} was replaced in between",
                    mount.target.display(),
                    mount.source.display()
                ),
                "check who can write to the folders above it, such as a server with a mount there",
            ));
        }
    }
    Ok(())
}

/// Mounts of a container's process, if the process number is valid here.
fn seen(pid: i64, id: &str) -> Option<Vec<Mounted>> {
    let text = fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
    // Read after that, so a reused process number is detected.
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    (id.len() >= 12 && groups.contains(id)).then(|| parsed(&text))
}

/// Origin of a path without links, by its text only.
fn origin(here: &[Mounted], source: &Path) -> Option<MountOrigin> {
    let above = here.iter().filter(|mounted| source.starts_with(&mounted.at));
    // The last of several mounts at one path covers the others.
    let over = above.max_by_key(|mounted| mounted.at.components().count())?;
    let rest = source.strip_prefix(&over.at).ok()?;
    let path = over.origin.path.join(rest).components().collect();
    Some(MountOrigin { device: over.origin.device.clone(), path })
}

fn parsed(text: &[u8]) -> Vec<Mounted> {
    let line = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ').skip(2);
        let device = String::from_utf8(words.next()?.to_vec()).ok()?;
        let path = unescaped(words.next()?);
        Some(Mounted { origin: MountOrigin { device, path }, at: unescaped(words.next()?) })
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Decodes white space and backslashes, which are three octal digits there.
fn unescaped(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        23 22 0:21 / /tmp rw shared:2 - tmpfs tmpfs rw\n\
        24 22 254:1 /@data /srv/my\\040data rw shared:3 - btrfs /dev/vdb rw\n\
        25 24 254:2 /inner /srv/my\\040data rw shared:4 - ext4 /dev/vdc rw\n";

    #[test]
    fn path_belongs_to_the_nearest_and_last_mount() {
        let here = parsed(HERE);
        let of = |path: &str| {
            let MountOrigin { device, path } = origin(&here, Path::new(path)).unwrap();
            format!("{device} {}", path.display())
        };
        assert_eq!(of("/srv/notes"), "254:0 /srv/notes");
        assert_eq!(of("/tmp"), "0:21 /");
        assert_eq!(of("/tmpfile"), "254:0 /tmpfile");
        assert_eq!(of("/srv/my data/a"), "254:2 /inner/a");
        assert_eq!(of("/srv/my data"), "254:2 /inner");
    }

    #[test]
    fn escaped_names_are_decoded() {
        for (word, name) in
            [(r"/a\040b\134c", r"/a b\c"), (r"/a\", r"/a\"), (r"/\99", r"/\99"), ("", "")]
        {
            assert_eq!(unescaped(word.as_bytes()), Path::new(name));
        }
    }
}
