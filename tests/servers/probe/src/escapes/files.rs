//! Files of the host and of the kernel, and programs from where none should come.

use std::{
    collections::BTreeSet,
    env, fs,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::Path,
    process::{self, Command, Stdio},
};

use super::{Attempt, Given, given, kernel, refused};

pub(super) const ALL: &[Attempt] = &[
    ("engine-socket", |told| UnixStream::connect(given(told, "socket")?).map(drop)),
    ("proc-root", proc_root),
    ("environ-of-others", environ_of_others),
    ("core-pattern", |_| writable(&["/proc/sys/kernel/core_pattern"])),
    ("modprobe-path", |_| writable(&["/proc/sys/kernel/modprobe"])),
    ("sysrq-trigger", |_| writable(&["/proc/sysrq-trigger"])),
    ("sys-write", |_| {
        writable(&[
            "/sys/kernel/uevent_helper",
            "/sys/kernel/mm/ksm/run",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "/sys/power/state",
        ])
    }),
    ("cgroup-make", |_| cgroup_make()),
    ("cgroup-limit", |_| {
        writable(&[
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/pids/cgroup.procs",
            "/sys/fs/cgroup/cgroup.procs",
        ])
    }),
    ("release-agent", |_| release_agent()),
    ("write-root", |_| {
        let file = format!("/.escape-{}", process::id());
        OpenOptions::new().write(true).create_new(true).open(&file)?;
        fs::remove_file(file)
    }),
    ("exec-tmp", |_| exec_in("/tmp")),
    ("exec-shm", |_| exec_in("/dev/shm")),
    ("exec-by-loader", |_| exec_by_loader()),
    ("exec-memory", |_| exec_memory()),
    ("setuid-program", |told| setuid_program(given(told, "setuid")?)),
    ("init-binary", |_| init_binary()),
    ("device-node", |_| with_node((7, 0), |_| Ok(()))),
    ("disk", |_| with_node(disk()?, read_some)),
    ("kernel-memory", |_| read_some("/proc/kcore")),
    ("kernel-log", |_| File::open("/dev/kmsg").map(drop)),
    ("kernel-pointers", |_| kernel_pointers()),
    ("shm-of-host", |told| File::open(Path::new("/dev/shm").join(given(told, "shm")?)).map(drop)),
    ("oom-score", |_| {
        // What it has already, less one: only who may lower it can.
        let now: i32 = fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0);
        fs::write("/proc/self/oom_score_adj", (now - 1).to_string())
    }),
    ("type-in", |_| {
        let terminal = File::open("/dev/tty").or_else(|_| File::open("/proc/self/fd/0"))?;
        kernel::type_in(&terminal)
    }),
];

/// Opened for writing; nothing is written.
fn writable(places: &[&str]) -> io::Result<()> {
    let mut last = refused("none there");
    for place in places.iter().filter(|place| Path::new(place).exists()) {
        last = made_writable(Path::new(place), || {
            OpenOptions::new().write(true).open(place).map(drop)
        });
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Tries, and where the file system is read-only, tries to make it writable and once more.
fn made_writable(place: &Path, attempt: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let tried = attempt();
    if !tried.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EROFS)) {
        return tried;
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split_ascii_whitespace().nth(1));
    let over = points.filter(|point| place.starts_with(point)).max_by_key(|point| point.len());
    let Some(over) = over.map(Path::new) else { return tried };
    // Of this mount, and else of the whole file system.
    let mut again = tried;
    for flags in [libc::MS_REMOUNT | libc::MS_BIND, libc::MS_REMOUNT] {
        kernel::mount(c"none", over, c"none", flags, c"")?;
        again = attempt();
        kernel::mount(c"none", over, c"none", flags | libc::MS_RDONLY, c"")?;
        if again.is_ok() {
            break;
        }
    }
    again
}

fn read_some(file: &str) -> io::Result<()> {
    match File::open(file)?.read(&mut [0; 512])? {
        0 => refused("empty"),
        _ => Ok(()),
    }
}

/// A file of the host, by way of another process that is seen.
fn proc_root(told: &Given) -> io::Result<()> {
    let file = given(told, "file")?;
    by_each(told, |process| fs::read(format!("/proc/{process}/root{file}")).map(drop))
}

/// By way of the process of the host that is told of, and of the first one that there is.
pub(super) fn by_each(told: &Given, attempt: impl Fn(&str) -> io::Result<()>) -> io::Result<()> {
    attempt(given(told, "process")?).or_else(|_| attempt("1"))
}

fn environ_of_others(told: &Given) -> io::Result<()> {
    let canary = given(told, "canary")?;
    for process in crate::surroundings::names("/proc") {
        let environ = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environ).contains(canary) {
            return Ok(());
        }
    }
    refused("not seen")
}

fn cgroup_make() -> io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let mut last = refused("none there");
    for name in crate::surroundings::names(root).into_iter().chain([String::new()]) {
        let folder = root.join(name);
        if folder.join("cgroup.procs").exists() {
            let made = folder.join(format!("escape-{}", process::id()));
            last = made_writable(&folder, || {
                fs::create_dir(&made).and_then(|()| fs::remove_dir(&made))
            });
            if last.is_ok() {
                break;
            }
        }
    }
    last
}

/// The program that the kernel runs, outside, when a group is empty.
fn release_agent() -> io::Result<()> {
    let place = Path::new("/tmp/escape-cgroup");
    fs::create_dir_all(place)?;
    let mut last = refused("none there");
    for controller in [c"memory", c"rdma", c"pids", c"cpu"] {
        last = kernel::mount(c"cgroup", place, c"cgroup", 0, controller);
        if last.is_ok() {
            last = writable(&["/tmp/escape-cgroup/release_agent"]);
            kernel::unmount(place)?;
            break;
        }
    }
    last
}

/// A script that this program is to run: the file is what is executed.
fn exec_in(folder: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let script = format!("{folder}/escape-{}", process::id());
    let attempt = || {
        fs::write(&script, line()?)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        runs(&mut Command::new(&script))
    };
    let tried = attempt();
    let _ = fs::remove_file(&script);
    tried
}

fn line() -> io::Result<String> {
    Ok(format!("#!{} --ids\n", env::current_exe()?.display()))
}

fn runs(command: &mut Command) -> io::Result<()> {
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { refused("did not run") }
}

/// The program that loads this one opens what it is told to, and no execution is asked for.
fn exec_by_loader() -> io::Result<()> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let files = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5));
    let named = |start: &'static str| {
        let name = move |file: &&str| file.rsplit('/').next().is_some_and(|n| n.starts_with(start));
        files.clone().find(name)
    };
    let (Some(loader), Some(library)) = (named("ld"), named("libgcc").or_else(|| named("libc")))
    else {
        return refused("no loader");
    };
    fs::create_dir_all("/tmp")?;
    let copy = format!("/tmp/escape-{}", process::id());
    let tried =
        fs::copy(library, &copy).and_then(|_| runs(Command::new(loader).arg("--list").arg(&copy)));
    let _ = fs::remove_file(&copy);
    tried
}

fn exec_memory() -> io::Result<()> {
    let place = format!("/proc/self/fd/{}", kernel::memory_file()?);
    OpenOptions::new().write(true).open(&place)?.write_all(line()?.as_bytes())?;
    runs(&mut Command::new(place))
}

/// A program that belongs to another user, and is to run as that one.
fn setuid_program(program: &str) -> io::Result<()> {
    let output = Command::new(program).arg("--ids").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.trim().split_once(' ') {
        Some((real, effective)) if real == effective => refused("runs as who started it"),
        Some(_) => Ok(()),
        None => refused("did not run"),
    }
}

/// The first process's program, which is the host's own.
fn init_binary() -> io::Result<()> {
    let place = Path::new("/sbin/docker-init");
    // Not opened: one that runs is busy, whoever may write to it.
    made_writable(place, || kernel::may_write(c"/sbin/docker-init"))
}

fn with_node(device: (u32, u32), then: impl Fn(&str) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir_all("/tmp")?;
    kernel::block_node(c"/tmp/escape-node", device)?;
    let tried = then("/tmp/escape-node");
    fs::remove_file("/tmp/escape-node")?;
    tried
}

/// The disk below any of the files that are seen.
fn disk() -> io::Result<(u32, u32)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut numbers = mounts.lines().filter_map(|line| {
        let (major, minor) = line.split_ascii_whitespace().nth(2)?.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    // A file system without a disk has the major number 0.
    let found = numbers.find(|(major, _)| *major != 0);
    found.ok_or_else(|| io::Error::other("no disk seen"))
}

fn kernel_pointers() -> io::Result<()> {
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let told = |line: &str| line.bytes().take_while(u8::is_ascii_hexdigit).any(|b| b != b'0');
    if symbols.lines().take(1000).any(told) { Ok(()) } else { refused("zeros") }
}

/// Looks at the programs of processes that come in from outside, as one that an engine starts beside
/// its server does: whoever can open the engine's own for writing owns the host (CVE-2019-5736).
/// Ends once it has seen a few, and tells of each program that could be opened.
pub fn watch() -> Vec<String> {
    let own = |file: &File| {
        let same = |place: &str| match (file.metadata(), fs::metadata(place)) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        same("/proc/self/exe") || same("/sbin/docker-init")
    };
    let mut seen: BTreeSet<String> = numbers().collect();
    let mut opened = BTreeSet::new();
    let mut strangers = BTreeSet::new();
    while strangers.len() < 3 {
        for number in numbers().filter(|number| !seen.contains(number)).collect::<Vec<_>>() {
            // Looked at for as long as it is there: it becomes another program on its way.
            while Path::new("/proc").join(&number).exists() {
                let program = format!("/proc/{number}/exe");
                match File::open(&program) {
                    Ok(file) if own(&file) => break,
                    Ok(_) => {
                        opened.insert(fs::read_link(&program).unwrap_or_default());
                    }
                    // One that is on its way to its end says something else.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    Err(_) => continue,
                }
                strangers.insert(number.clone());
            }
            seen.insert(number);
        }
    }
    opened.iter().map(|program| program.display().to_string()).collect()
}

fn numbers() -> impl Iterator<Item = String> {
    let names = crate::surroundings::names("/proc").into_iter();
    names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}
