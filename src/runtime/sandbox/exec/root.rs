//! Root file system inside: a tmpfs with read-only parts of the host, which replaces the host's
//! root.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, chown, pivot_root},
};

use super::{
    submounts,
    sys::{self, NODEV, NOEXEC, NOSUID, RDONLY},
};
use crate::sandbox::protocol::{Bind, Failure, Plan};

/// Folder where the new root is built. Covered in the launcher's mount namespace only.
const BASE: &str = "/tmp";

const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Parts of /proc that reveal or control the machine, and that no server needs. They are hidden.
const HIDDEN: &[&str] = &[
    "acpi",
    "asound",
    "kallsyms",
    "kcore",
    "keys",
    "kmsg",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];

/// Parts of /proc that programs read. They are read-only.
const FIXED: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Builds the root and moves into it. Afterwards, only what the plan binds is reachable of the
/// host's file system.
pub(super) fn enter(plan: &Plan) -> Result<(), Failure> {
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(no_mounts)?;

    // Opened before anything is covered, and without following a link: a source that a link
    // replaced since the check is refused.
    let sources = plan
        .binds
        .iter()
        .map(|bind| Ok((bind, open_source(&bind.source)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let devices = DEVICES
        .iter()
        .map(|device| Ok((Bind::read_only(*device, *device), open_source(Path::new(device))?)))
        .collect::<Result<Vec<_>, Failure>>()?;

    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("root"), BASE, Some("tmpfs"), flags, Some("mode=0755,size=64m,nr_inodes=16k"))
        .map_err(no_mounts)?;
    chdir(BASE).map_err(at("enter the new root"))?;
    populate(plan)?;

    let proc = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "proc", Some("proc"), proc, none).map_err(no_proc)?;
    mask_proc()?;

    let tmp = if plan.exec_tmp { flags } else { flags | MsFlags::MS_NOEXEC };
    // Inodes in proportion to 64 MiB's default, because each uses kernel memory.
    let inodes = (plan.tmp / 4096).clamp(16 << 10, 1 << 20);
    let options = format!("mode=1777,size={},nr_inodes={inodes}", plan.tmp);
    mount(Some("tmp"), "tmp", Some("tmpfs"), tmp, Some(options.as_str()))
        .map_err(at("mount a private /tmp"))?;

    for (device, source) in &devices {
        bind(device, source, &[], NOSUID | NOEXEC)?;
    }
    for (index, (wanted, source)) in sources.iter().enumerate() {
        // A writable folder is not executable, so that a server cannot write itself a program.
        let restrictions = match (wanted.writable, plan.exec_tmp) {
            (false, _) => RDONLY | NOSUID | NODEV,
            (true, false) => NOSUID | NODEV | NOEXEC,
            (true, true) => NOSUID | NODEV,
        };
        let earlier = plan.binds.get(..index).unwrap_or_default();
        bind(wanted, source, earlier, restrictions)?;
    }

    pivot_root(".", ".").map_err(at("change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("detach the host's root"))?;
    chdir("/").map_err(at("enter the new root"))?;
    if plan.writable_root {
        let (uid, gid) = plan.user;
        chown("/", Some(uid.into()), Some(gid.into()))
            .map_err(at("change the owner of the root"))?;
    } else {
        let root = open(Path::new("/"))?;
        sys::restrict_mount(root.as_fd(), RDONLY, false).map_err(at("make the root read-only"))?;
    }
    Ok(())
}

/// Creates the folders, links and files of the plan in the current folder.
fn populate(plan: &Plan) -> Result<(), Failure> {
    for folder in ["dev", "etc", "proc", "tmp"] {
        fs::create_dir(folder).map_err(|error| io("create", Path::new(folder), &error))?;
    }
    let devices = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("shm", "/tmp"),
    ];
    let devices = devices.map(|(name, target)| (Path::new("/dev").join(name), target.into()));
    for (mount_point, target) in devices.iter().chain(&plan.links) {
        symlink(target, inside(mount_point)).map_err(|error| io("link", mount_point, &error))?;
    }
    for (mount_point, contents) in &plan.files {
        fs::write(inside(mount_point), contents)
            .and_then(|()| {
                fs::set_permissions(inside(mount_point), fs::Permissions::from_mode(0o644))
            })
            .map_err(|error| io("write", mount_point, &error))?;
    }
    Ok(())
}

fn mask_proc() -> Result<(), Failure> {
    let none = None::<&Path>;
    let exists = |name: &&&str| Path::new("proc").join(name).exists();
    for name in HIDDEN.iter().filter(exists) {
        let mount_point = Path::new("proc").join(name);
        if mount_point.is_dir() {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("none"), &mount_point, Some("tmpfs"), flags, Some("size=0,nr_inodes=2"))
        } else {
            mount(Some("/dev/null"), &mount_point, none, MsFlags::MS_BIND, none)
        }
        .map_err(|errno| errno_at(&format!("hide /proc/{name}"), errno))?;
    }
    for name in FIXED.iter().filter(exists) {
        let mount_point = Path::new("proc").join(name);
        mount(Some(&mount_point), &mount_point, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
            .and_then(|()| {
                nix::fcntl::open(
                    &mount_point,
                    OFlag::O_PATH | OFlag::O_CLOEXEC,
                    nix::sys::stat::Mode::empty(),
                )
            })
            .and_then(|fd| sys::restrict_mount(fd.as_fd(), RDONLY, true))
            .map_err(|errno| errno_at(&format!("make /proc/{name} read-only"), errno))?;
    }
    Ok(())
}

/// Binds one source to its target in the new root, which is the current folder.
fn bind(bind: &Bind, source: &OwnedFd, earlier: &[Bind], restrict: u64) -> Result<(), Failure> {
    let none = None::<&Path>;
    let mount_point = inside(&bind.target);
    if !earlier.iter().any(|outer| bind.target.starts_with(&outer.target)) {
        create_mount_point(source, &mount_point)
            .map_err(|error| io("make room for", &bind.target, &error))?;
    }
    // Within another mount, the target must exist already. Links are not followed: the owner of
    // that mount may have created one that leads elsewhere.
    let target = open_mount_point(&mount_point, &bind.target)?;
    let fd = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let attach = |flags| mount(Some(fd(source).as_str()), fd(&target).as_str(), none, flags, none);
    let with_all_below = MsFlags::MS_BIND | MsFlags::MS_REC;
    let failed = |errno| errno_at(&format!("mount `{}`", bind.source.display()), errno);
    let to_be_covered = match attach(if bind.recursive { with_all_below } else { MsFlags::MS_BIND })
    {
        Ok(()) => false,
        // A user namespace may not separate inherited mounts.
        Err(Errno::EINVAL) if !bind.recursive => {
            attach(with_all_below).map_err(failed)?;
            true
        }
        Err(errno) => return Err(failed(errno)),
    };
    let mounted = open_mount_point(&mount_point, &bind.target)?;
    if to_be_covered {
        submounts::cover(&mounted)?;
    }
    sys::restrict_mount(mounted.as_fd(), restrict, true)
        .map_err(|errno| errno_at(&format!("restrict `{}`", bind.source.display()), errno))
}

fn create_mount_point(source: &OwnedFd, mount_point: &Path) -> std::io::Result<()> {
    let folder = fs::metadata(format!("/proc/self/fd/{}", source.as_raw_fd()))?.is_dir();
    if folder {
        return fs::create_dir_all(mount_point);
    }
    if let Some(parent) = mount_point.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(mount_point).map(drop)
}

fn open_source(path: &Path) -> Result<OwnedFd, Failure> {
    open(path).map_err(|failure| {
        failure
            .remedy("it must exist, be readable for the proxy's user, and contain no symbolic link")
    })
}

fn open(path: &Path) -> Result<OwnedFd, Failure> {
    openat2(AT_FDCWD, path, strict())
        .map_err(|errno| errno_at(&format!("open `{}`", path.display()), errno))
}

fn open_mount_point(mount_point: &Path, shown: &Path) -> Result<OwnedFd, Failure> {
    let base =
        nix::fcntl::open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
            .map_err(at("open the new root"))?;
    let how = strict().resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
    openat2(base, mount_point, how).map_err(|errno| {
        errno_at(&format!("open the mount point `{}`", shown.display()), errno)
            .remedy("create the folder in the mount around it, as a folder and not as a link")
    })
}

fn strict() -> OpenHow {
    OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Absolute path inside, relative to the new root while that is the current folder.
fn inside(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn at(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| errno_at(what, errno)
}

fn errno_at(what: &str, errno: Errno) -> Failure {
    Failure::new(format!("the sandbox can't {what}: {}", errno.desc()))
}

fn io(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("the sandbox can't {what} `{}`: {error}", path.display()))
}

fn no_mounts(errno: Errno) -> Failure {
    Failure::new(format!(
        "the sandbox can't build its file system: mount is refused ({})",
        errno.desc()
    ))
    .remedy(super::USER_NAMESPACES)
}

fn no_proc(errno: Errno) -> Failure {
    Failure::new(format!("the sandbox can't mount its own /proc ({})", errno.desc())).remedy(
        "this happens inside containers, whose /proc is partly covered: run the proxy on the \
         host, or install a container engine for it",
    )
}
