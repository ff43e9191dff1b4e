//! `portcullis pod-exec`, in a container of the proxy's pod. `install` copies this executable with
//! its libraries to a folder that the server's container sees. `serve` runs there, and starts the
//! server's program for each connection of the proxy.
//!
//! `serve` is single-threaded from start to end. Each connection has a process that starts the
//! program and inherits all processes that the program leaves behind: when the connection ends, all
//! of them are killed. A program has the same user and may kill that process. Then its processes
//! fall to `serve`, which ends every process that belongs to no connection.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::{
        fd::AsFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use lddtree::DependencyAnalyzer;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        socket::{getsockopt, sockopt::PeerCredentials},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{ForkResult, Pid, geteuid, getpid, setsid},
};
use portcullis_kubernetes::LOADERS;

use super::{
    LaunchInput, confine, init,
    process_tree::{Tree, below},
    receive, seccomp, sys,
};
use crate::sandbox::protocol::{Failure, Plan, Report};

/// Limit of simultaneous connections: more than a proxy has instances, warm processes and replicas
/// of one server.
const MAX_CONNECTIONS: usize = 256;
/// Time limit for a connection to send its plan.
const PLAN_TIMEOUT: Duration = Duration::from_secs(30);
/// File of the image in which glibc's loader looks for libraries to preload, which would run before
/// anything is confined.
const PRELOAD: &[u8] = b"/etc/ld.so.preload";
/// Path that the patched loader reads instead: a folder of Portcullis without such a file.
const NO_PRELOAD: &[u8] = b"/portcullis/noload";
const _: () = assert!(PRELOAD.len() == NO_PRELOAD.len());
/// Default program path for images that do not set one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const USAGE: &str = "portcullis pod-exec install FOLDER
portcullis pod-exec serve SOCKET -- PROGRAM [ARGUMENT…]";

/// Runs the verb: `arguments` are those after `pod-exec`.
pub fn pod_main(arguments: &[OsString]) -> ExitCode {
    let done = match arguments {
        [verb, folder] if verb == "install" => install(Path::new(folder)),
        [verb, socket, dashes, program @ ..]
            if verb == "serve" && dashes == "--" && !program.is_empty() =>
        {
            serve(Path::new(socket), program)
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis pod-exec: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Copies this executable as `portcullis`, its loader as `ld.so` and its libraries into `lib`. The
/// image in which it will run may have other libraries, or none.
fn install(folder: &Path) -> io::Result<()> {
    let ourselves = env::current_exe()?;
    let tree = DependencyAnalyzer::default().analyze(&ourselves).map_err(io::Error::other)?;
    let loader = tree.interpreter.ok_or_else(|| {
        io::Error::other("this executable is linked statically: build the image with a dynamic one")
    })?;
    let libraries = folder.join("lib");
    fs::create_dir_all(&libraries)?;
    let put = |bytes: &[u8], to: PathBuf| -> io::Result<()> {
        // A restarted container finds the files of the previous run.
        let new = to.with_extension("new");
        fs::write(&new, bytes)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o555))?;
        fs::rename(new, to)
    };
    for library in tree.libraries.values() {
        let missing = || io::Error::other(format!("{} is not installed", library.name));
        let real = library.realpath.as_ref().ok_or_else(missing)?;
        let name = Path::new(&library.name).file_name().unwrap_or_default();
        put(&fs::read(real)?, libraries.join(name))?;
    }
    put(&without_preload(fs::read(&loader)?)?, folder.join("ld.so"))?;
    put(&fs::read(&ourselves)?, folder.join("portcullis"))
}

/// Patches a loader so that it preloads nothing of the image.
fn without_preload(mut loader: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut found = false;
    while let Some(at) = memchr::memmem::find(&loader, PRELOAD) {
        loader[at..at + PRELOAD.len()].copy_from_slice(NO_PRELOAD);
        found = true;
    }
    if !found {
        return Err(io::Error::other(
            "unknown loader, not glibc's: build the image as `examples/deploy/build` does",
        ));
    }
    Ok(loader)
}

/// Listens until the signal to end.
fn serve(socket: &Path, program: &[OsString]) -> io::Result<()> {
    // The program has the same user, and could otherwise write to this process.
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    // The proxy is another user. Only the two containers see the folder.
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    // The pod's network is shared with the proxy. While the proxy restarts, its port is free, and a
    // process that took it would receive the clients' keys. All processes started here have this
    // restriction.
    seccomp::forbid_listening().map_err(|failure| io::Error::other(failure.what))?;
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut running = BTreeSet::new();
    loop {
        {
            let mut ready = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            ];
            // Connections beyond the limit wait.
            let of = if running.len() < MAX_CONNECTIONS { &mut ready[..] } else { &mut ready[..1] };
            match poll(of, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                // The container's other processes end with its first process.
                return Ok(());
            }
        }
        let mut ended = false;
        // Also processes that fell to the container's first process.
        while let Some(pid) =
            waitpid(None, Some(WaitPidFlag::WNOHANG)).ok().and_then(|status| status.pid())
        {
            ended |= running.remove(&pid);
        }
        if ended {
            kill_orphans(&running);
        }
        if running.len() >= MAX_CONNECTIONS {
            continue;
        }
        let Ok((control, _)) = listener.accept() else { continue };
        // The proxy is another user; this process has the program's user.
        if !getsockopt(&control, PeerCredentials).is_ok_and(|peer| peer.uid() != geteuid().as_raw())
        {
            continue;
        }
        match sys::fork() {
            Ok(ForkResult::Child) => {
                drop((listener, signals));
                std::process::exit(i32::try_from(one(control, program)).unwrap_or(125));
            }
            Ok(ForkResult::Parent { child }) => {
                running.insert(child);
            }
            Err(errno) => eprintln!("portcullis pod-exec: no process: {}", errno.desc()),
        }
    }
}

/// Starts the program for one connection, and returns the exit code when either has ended.
fn one(mut control: UnixStream, program: &[OsString]) -> i64 {
    let ended = start(&mut control, program);
    // Before the connection ends, which signals to the proxy that no process remains.
    kill_all_below();
    ended.unwrap_or_else(|failure| {
        eprintln!("portcullis pod-exec: {}", failure.what);
        init::report(&mut control, &Report::Failed(failure));
        125
    })
}

fn start(control: &mut UnixStream, program: &[OsString]) -> Result<i64, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("a connection can't be served: {error}"))
    };
    let _ = setsid();
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| failed(&errno.desc()))?;
    prctl::set_child_subreaper(true).map_err(|errno| failed(&errno.desc()))?;
    prctl::set_dumpable(false).map_err(|errno| failed(&errno.desc()))?;
    control.set_read_timeout(Some(PLAN_TIMEOUT)).map_err(|error| failed(&error))?;
    let LaunchInput { mut plan, streams, .. } = receive(control)?;
    control.set_read_timeout(None).map_err(|error| failed(&error))?;
    complete(&mut plan, program, env::vars_os())?;
    confine::limit_resources(&plan, 0)?;
    prctl::set_no_new_privs().map_err(|errno| failed(&errno.desc()))?;
    seccomp::confine()?;
    // Other processes of the container belong to other connections.
    init::run(plan, control, streams, false, Tree::Own)
}

/// Completes a plan with the program and the environment of this container's image.
fn complete(
    plan: &mut Plan,
    program: &[OsString],
    around: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(), Failure> {
    let text = |text: OsString| {
        text.into_string().map_err(|_| Failure::new("an argument or a variable is not UTF-8"))
    };
    let mut environment = Vec::new();
    for (name, value) in around {
        let name = text(name)?;
        // Variables of the cluster, which are not part of the image.
        let set = plan.environment.iter().any(|(other, _)| *other == name);
        // Nor those that the manifests set to empty, which disables the image's values.
        let emptied = value.is_empty() && LOADERS.contains(&&*name);
        if !set && !emptied && !name.starts_with("KUBERNETES_") {
            environment.push((name, text(value)?));
        }
    }
    plan.environment.extend(environment);
    let path = plan.environment.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(PATH, |(_, path)| path.as_str());
    let (first, arguments) = program.split_first().ok_or_else(|| Failure::new("no program"))?;
    plan.program = Some(find(first, path)?);
    let named = std::iter::once(first).chain(arguments).cloned();
    let own = named.map(text).collect::<Result<Vec<_>, _>>()?;
    plan.arguments.splice(..0, own);
    Ok(())
}

fn find(program: &OsStr, path: &str) -> Result<PathBuf, Failure> {
    if program.as_bytes().contains(&b'/') {
        return Ok(program.into());
    }
    let is_program = |candidate: &PathBuf| {
        fs::metadata(candidate)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(path).map(|folder| folder.join(program)).find(is_program).ok_or_else(|| {
        Failure::new(format!("`{}` is in no folder of PATH", program.to_string_lossy()))
    })
}

/// Kills processes that are below this one and below no connection's process: those left by a
/// program that killed the process that started it.
fn kill_orphans(running: &BTreeSet<Pid>) {
    loop {
        let preserved: BTreeSet<Pid> =
            running.iter().flat_map(|one| below(*one)).chain(running.iter().copied()).collect();
        let strays: Vec<Pid> =
            below(getpid()).into_iter().filter(|pid| !preserved.contains(pid)).collect();
        if strays.is_empty() {
            return;
        }
        for pid in &strays {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        for pid in strays {
            // Children of another process come here next, after that process has ended.
            let _ = waitpid(pid, None);
        }
    }
}

/// Kills every process below this one. Processes whose parent ends meanwhile become children of
/// this one, so the loop ends when it has no children.
fn kill_all_below() {
    loop {
        for pid in below(getpid()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_is_completed_from_the_container() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("server");
        fs::write(&program, "").unwrap();
        let around = |path: &str| {
            [("PATH", path), ("A", "image"), ("KUBERNETES_PORT", "x"), ("HOME", "/root")]
                .map(|(name, value)| (OsString::from(name), OsString::from(value)))
        };
        let path = folder.path().to_str().unwrap();
        let of = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let mut plan = Plan::empty();
        plan.arguments = vec!["--last".into()];
        plan.environment = vec![("A".into(), "config".into())];
        let completed = complete(&mut plan, &of(&["server", "--first"]), around(path).into_iter());
        // It exists, but is not executable.
        assert!(completed.unwrap_err().what.contains("`server` is in no folder"));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut plan = Plan::empty();
        plan.arguments = vec!["--last".into()];
        plan.environment = vec![("A".into(), "config".into())];
        complete(&mut plan, &of(&["server", "--first"]), around(path).into_iter()).unwrap();
        assert_eq!(plan.program.as_deref(), Some(&*program));
        assert_eq!(plan.arguments, ["server", "--first", "--last"]);
        let has = |name: &str| {
            let found = plan.environment.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!((has("A"), has("HOME")), (Some("config"), Some("/root")));
        assert_eq!(has("KUBERNETES_PORT"), None);
        assert_eq!(find(OsStr::new("/x/y"), "").ok(), Some("/x/y".into()));
    }

    #[test]
    fn patched_loader_ignores_the_image() {
        let tree = DependencyAnalyzer::default().analyze(env::current_exe().unwrap()).unwrap();
        let loader = fs::read(tree.interpreter.unwrap()).unwrap();
        let length = loader.len();
        let ours = without_preload(loader).unwrap();
        assert_eq!(ours.len(), length);
        assert!(memchr::memmem::find(&ours, PRELOAD).is_none());
        assert!(memchr::memmem::find(&ours, NO_PRELOAD).is_some());
        assert!(without_preload(b"another loader".to_vec()).is_err());
    }
}
