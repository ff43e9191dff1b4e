//! Hides mounts below a folder that a server sees. They were not checked, so no server may see
//! them: a folder is bound without them, or, if the kernel does not allow that, each of them is
//! covered.
//!
//! In a separate user namespace, a process cannot separate inherited mounts: it binds a folder with
//! everything below it or not at all.

use std::{
    ffi::OsString,
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MsFlags, mount},
};

use crate::sandbox::protocol::Failure;

/// Source name that identifies covers.
const COVER: &str = "covered";

/// Line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    id: u64,
    parent: u64,
    point: PathBuf,
    is_cover: bool,
}

/// Covers all mounts below a folder that was bound with them: an empty folder is visible there, or
/// an unreadable file.
pub(super) fn cover(bound: &OwnedFd) -> Result<(), Failure> {
    let id = id_of(bound)?;
    let below = |all: &[Mounted]| -> Vec<PathBuf> {
        let bare = all.iter().filter(|one| one.parent == id && !is_covered(all, one));
        bare.map(|one| one.point.clone()).collect()
    };
    for point in below(&mounts()?) {
        hide(&point).map_err(|errno| {
            Failure::new(format!(
                "the sandbox can't hide `{}`, which is mounted below a mount: {}",
                point.display(),
                errno.desc()
            ))
            .remedy("mount a folder without mounts in it, or unmount them first")
        })?;
    }
    // A process that can rename folders there could have had another one covered.
    match below(&mounts()?).first() {
        None => Ok(()),
        Some(bare) => Err(Failure::new(format!(
            "the sandbox did not hide `{}`, which is mounted below a mount",
            bare.display()
        ))
        .remedy("try again: folders were renamed meanwhile")),
    }
}

fn hide(point: &Path) -> nix::Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = openat2(AT_FDCWD, point, how)?;
    let opened = format!("/proc/self/fd/{}", opened.as_raw_fd());
    let none = None::<&Path>;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("size=0,nr_inodes=2,mode=0555");
    match mount(Some(COVER), opened.as_str(), Some("tmpfs"), flags, options) {
        // It is a file. A device cannot be opened there, because the mount around it has `nodev`.
        Err(Errno::ENOTDIR) => {
            mount(Some("/dev/null"), opened.as_str(), none, MsFlags::MS_BIND, none)
        }
        done => done,
    }
}

/// Whether the last mount over it is a cover.
fn is_covered(all: &[Mounted], one: &Mounted) -> bool {
    let over = |one: &Mounted| all.iter().find(|o| o.parent == one.id && o.point == one.point);
    let last = std::iter::successors(over(one), |last| over(last)).last();
    last.is_some_and(|last| last.is_cover)
}

fn id_of(file: &OwnedFd) -> Result<u64, Failure> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()));
    let info = info.map_err(|error| unknown(&error.to_string()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| unknown("the kernel does not report the mount of a file"))
}

fn mounts() -> Result<Vec<Mounted>, Failure> {
    let info = fs::read("/proc/self/mountinfo").map_err(|error| unknown(&error.to_string()))?;
    let lines = info.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| mounted(line).ok_or_else(|| unknown("a line has an unknown format"))).collect()
}

fn unknown(why: &str) -> Failure {
    Failure::new(format!("the sandbox can't find the mounts below a mount: {why}"))
}

fn mounted(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let (root, point) = (fields.nth(1)?, fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (rest.next()?, rest.next()?);
    let is_cover = (kind == b"tmpfs" && source == COVER.as_bytes()) || root == b"/null";
    Some(Mounted { id, parent, point: unescaped(point)?, is_cover })
}

/// Decodes the octal numbers that represent spaces, line breaks and backslashes in a path.
fn unescaped(field: &[u8]) -> Option<PathBuf> {
    let mut path = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'\\' {
            path.push(*byte);
            continue;
        }
        let (octal, rest) = bytes.as_slice().split_at_checked(3)?;
        path.push(u8::from_str_radix(std::str::from_utf8(octal).ok()?, 8).ok()?);
        bytes = rest.iter();
    }
    Some(OsString::from_vec(path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_parsed_or_refused() {
        for (line, expected) in [
            (
                "36 35 98:0 / /tmp/data rw,noatime master:1 - ext4 /dev/root rw",
                Some(("/tmp/data", false)),
            ),
            ("36 35 0:5 / /a\\040b\\134c\\012d rw - tmpfs covered rw", Some(("/a b\\c\nd", true))),
            (
                "36 35 0:5 /null /x rw shared:3 propagate_from:2 - devtmpfs udev rw",
                Some(("/x", true)),
            ),
            ("36 35 0:5 / /covered rw - tmpfs other rw", Some(("/covered", false))),
            ("36 35 0:5 / /x\\04", None),
            ("36 x 0:5 / /x rw - tmpfs covered rw", None),
            ("36 35 0:5 / /x rw - tmpfs", None),
        ] {
            let expected = expected.map(|(point, is_cover)| Mounted {
                id: 36,
                parent: 35,
                point: point.into(),
                is_cover,
            });
            assert_eq!(mounted(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn last_mount_at_a_path_is_the_visible_one() {
        let one = |id, parent, point: &str, is_cover| Mounted {
            id,
            parent,
            point: point.into(),
            is_cover,
        };
        let all = [
            one(1, 0, "/data", false),
            one(2, 1, "/data/bare", false),
            one(3, 1, "/data/covered", false),
            one(4, 3, "/data/covered", true),
            one(5, 1, "/data/over", false),
            one(6, 5, "/data/over", true),
            one(7, 6, "/data/over", false),
            one(8, 1, "/data/missed", false),
            one(9, 8, "/data/missed/deeper", true),
        ];
        let covered = all.iter().filter(|mounted| mounted.parent == 1);
        let covered: Vec<_> = covered.map(|mounted| is_covered(&all, mounted)).collect();
        assert_eq!(covered, [false, true, false, false]);
    }
}
