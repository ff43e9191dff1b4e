//! Files that run as their owner or with capabilities: a server that leaves one in a folder of the
//! host has left a program of its own user for everybody there.

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
    process,
};

use libc::{c_int, c_long};

use super::{Attempt, Given, given, kernel::text, refused};
use crate::attempts::call;

const SET_ID: u32 = 0o6000;
const PROGRAM: c_long = 0o6755;

pub(super) const ALL: &[Attempt] = &[
    ("set-id-chmod", |told| with_file(told, |file| chmod(file, PROGRAM))),
    ("set-user-id-chmod", |told| with_file(told, |file| chmod(file, 0o4755))),
    ("set-group-id-chmod", |told| with_file(told, |file| chmod(file, 0o2755))),
    ("set-id-fchmod", |told| {
        with_file(told, |file| {
            let open = fs::OpenOptions::new().write(true).open(path(file))?;
            call(libc::SYS_fchmod, &[open.as_raw_fd().into(), PROGRAM]).map(drop)
        })
    }),
    ("set-id-fchmodat", |told| with_file(told, |file| at(libc::SYS_fchmodat, file, &[PROGRAM]))),
    ("set-id-fchmodat2", |told| {
        const FCHMODAT2: c_long = 452;
        with_file(told, |file| at(FCHMODAT2, file, &[PROGRAM, 0]))
    }),
    ("set-id-open", |told| without_file(told, |file| open(file, libc::O_CREAT))),
    ("set-id-creat", |told| without_file(told, creat)),
    ("set-id-openat", |told| {
        let flags = c_long::from(libc::O_CREAT | libc::O_RDWR);
        without_file(told, |file| at(libc::SYS_openat, file, &[flags, PROGRAM]))
    }),
    ("set-id-openat2", |told| {
        without_file(told, |file| {
            // struct open_how: flags, mode, resolve.
            let mut how = [(libc::O_CREAT | libc::O_RDWR) as u64, PROGRAM as u64, 0];
            at(libc::SYS_openat2, file, &[how.as_mut_ptr() as c_long, 24])
        })
    }),
    ("set-id-tmpfile", tmpfile),
    ("set-id-mknod", |told| {
        let mode = c_long::from(libc::S_IFREG) | PROGRAM;
        without_file(told, |file| at(libc::SYS_mknodat, file, &[mode, 0]))
    }),
    ("set-id-link", |told| {
        let program = CString::new(given(told, "setuid")?)?;
        without_file(told, |file| {
            let here = c_long::from(libc::AT_FDCWD);
            call(libc::SYS_linkat, &[here, text(&program), here, text(file), 0]).map(drop)
        })
    }),
    ("file-capabilities", |told| with_file(told, file_capabilities)),
];

/// The folder that is given, or /tmp.
fn place(told: &Given) -> io::Result<CString> {
    let folder = told.get("folder").map_or("/tmp", String::as_str);
    fs::create_dir_all(folder)?;
    let place = PathBuf::from(folder).join(format!("escape-set-id-{}", process::id()));
    Ok(CString::new(place.into_os_string().into_encoded_bytes())?)
}

fn path(file: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(file.to_bytes()))
}

/// Makes a file, has it changed, and looks at its mode.
fn with_file(told: &Given, change: impl Fn(&CStr) -> io::Result<()>) -> io::Result<()> {
    let file = place(told)?;
    fs::write(path(&file), "")?;
    judged(&file, change(&file))
}

/// Has a file made, and looks at its mode.
fn without_file(told: &Given, make: impl Fn(&CStr) -> io::Result<()>) -> io::Result<()> {
    let file = place(told)?;
    judged(&file, make(&file))
}

/// Whatever the call said, a file that has what was tried is a success. It is removed.
fn judged(file: &CStr, tried: io::Result<()>) -> io::Result<()> {
    let mode = fs::metadata(path(file)).map_or(0, |found| found.permissions().mode());
    let capable = {
        let mut value = [0_u8; 64];
        let into = value.as_mut_ptr() as c_long;
        call(libc::SYS_getxattr, &[text(file), text(c"security.capability"), into, 64]).is_ok()
    };
    let _ = fs::remove_file(path(file));
    match tried {
        _ if mode & SET_ID != 0 || capable => Ok(()),
        Ok(()) => refused("the bits are gone"),
        refused => refused,
    }
}

fn at(number: c_long, file: &CStr, arguments: &[c_long]) -> io::Result<()> {
    call(number, &[&[libc::AT_FDCWD.into(), text(file)], arguments].concat()).map(drop)
}

#[cfg(target_arch = "x86_64")]
fn chmod(file: &CStr, mode: c_long) -> io::Result<()> {
    call(libc::SYS_chmod, &[text(file), mode]).map(drop)
}

#[cfg(not(target_arch = "x86_64"))]
fn chmod(file: &CStr, mode: c_long) -> io::Result<()> {
    at(libc::SYS_fchmodat, file, &[mode])
}

#[cfg(target_arch = "x86_64")]
fn creat(file: &CStr) -> io::Result<()> {
    call(libc::SYS_creat, &[text(file), PROGRAM]).map(drop)
}

#[cfg(not(target_arch = "x86_64"))]
fn creat(file: &CStr) -> io::Result<()> {
    open(file, libc::O_CREAT | libc::O_TRUNC)
}

#[cfg(target_arch = "x86_64")]
fn open(file: &CStr, flags: c_int) -> io::Result<()> {
    let flags = c_long::from(flags | libc::O_RDWR);
    call(libc::SYS_open, &[text(file), flags, PROGRAM]).map(drop)
}

#[cfg(not(target_arch = "x86_64"))]
fn open(file: &CStr, flags: c_int) -> io::Result<()> {
    at(libc::SYS_openat, file, &[c_long::from(flags | libc::O_RDWR), PROGRAM])
}

/// A file without a name, which can be given one later.
fn tmpfile(told: &Given) -> io::Result<()> {
    let file = place(told)?;
    let folder = path(&file).parent().unwrap_or(Path::new("/"));
    let folder = CString::new(folder.as_os_str().as_bytes())?;
    let flags = c_long::from(libc::O_TMPFILE | libc::O_RDWR);
    let here = c_long::from(libc::AT_FDCWD);
    let made = call(libc::SYS_openat, &[here, text(&folder), flags, PROGRAM])?;
    #[expect(unsafe_code, reason = "the descriptor is a new one, and nobody else's")]
    // SAFETY: openat has just returned it.
    let made = File::from(unsafe { OwnedFd::from_raw_fd(made as c_int) });
    match made.metadata()?.permissions().mode() & SET_ID {
        0 => refused("the bits are gone"),
        _ => Ok(()),
    }
}

/// CAP_SETUID, permitted and effective, to whoever runs the file: struct vfs_cap_data.
fn file_capabilities(file: &CStr) -> io::Result<()> {
    const REVISION_2_EFFECTIVE: u32 = 0x0200_0001;
    const SETUID: u32 = 1 << 7;
    let mut data = [REVISION_2_EFFECTIVE, SETUID, 0, 0, 0].map(u32::to_le);
    let value = data.as_mut_ptr() as c_long;
    let name = text(c"security.capability");
    call(libc::SYS_setxattr, &[text(file), name, value, 20, 0]).map(drop)
}
