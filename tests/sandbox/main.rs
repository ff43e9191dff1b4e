//! The sandbox, against the real kernel, through the real executable. As root, everything runs
//! once more as an ordinary user.

mod doctor;
mod harness;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use harness::{
    PORTCULLIS, descendants, gone, installed, launch, mount, probe, python, run, run_with, secret,
    spec,
};
use serde_json::json;
use tokio::io::AsyncReadExt;

/// An ordinary user of this machine, who need not exist.
const USER: u32 = 54321;

const REFUSED: &str = "PORTCULLIS_TEST_REFUSED";
const HOLDER: &str = "PORTCULLIS_TEST_HOLDER";

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

#[test]
fn everything_once_more_as_an_ordinary_user() {
    if !is_root() {
        return;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args(["--skip", "everything_once_more"])
        .env_remove("HOME")
        .uid(USER)
        .gid(USER)
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_server_can_do_nothing_that_it_should_not() {
    let found = probe(|_| {}).await;
    assert_eq!(found["ids"], json!([65534, 65534, 65534, 65534]));
    assert_eq!(found["capabilities"], json!(["0000000000000000"]));
    assert_eq!(found["no_new_privs"], "1");
    assert_eq!(found["seccomp"], "2");
    assert_eq!(found["hostname"], "probe");
    assert_eq!(found["processes"], json!([1, 2]));
    assert_eq!(found["interfaces"], json!(["lo"]));
    assert_ne!(found["parent"], "ok");
    assert_eq!(found["descriptors"], json!([0, 1, 2]));
    for (path, outcome) in found["read"].as_object().unwrap() {
        assert_ne!(outcome, "ok", "read {path}");
    }
    for (path, outcome) in found["write"].as_object().unwrap() {
        let allowed = path.starts_with("/tmp/") || path.starts_with("/dev/shm/");
        assert_eq!(outcome == "ok", allowed, "write {path}: {outcome}");
    }
    assert_eq!(found["execute"]["/tmp/x.sh"], "Permission denied");
    let root: Vec<_> =
        found["root"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let known = [
        "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "nix", "proc", "sbin", "tmp", "usr",
    ];
    assert!(root.iter().all(|name| known.contains(name)), "{root:?}");
    assert_eq!(
        found["sockets"],
        json!({
            "unix": "ok", "inet": "ok", "inet6": "ok", "route": "ok",
            "audit": "Operation not permitted", "packet": "Operation not permitted",
            "vsock": "Operation not permitted", "alg": "Operation not permitted",
        })
    );
    assert_eq!(found["connect"]["host"], "Connection refused");
    assert_eq!(found["connect"]["abroad"], "Network is unreachable");
    assert_eq!(found["connect"]["itself"], "ok");
    for (call, outcome) in found["calls"].as_object().unwrap() {
        assert_eq!(outcome, "Function not implemented", "{call}");
    }
    // The launcher's own processes count among them.
    let own = if is_root() { 1 } else { 2 };
    assert_eq!(
        found["limits"],
        json!({ "NOFILE": 1024, "CORE": 0, "NPROC": 128 + own, "DATA": 1 << 30 })
    );
    assert_eq!(found["processors"], 1);
}

#[tokio::test]
async fn the_environment_is_what_the_config_says_and_nothing_else() {
    let value = ["hunter", "2"].concat();
    let found = probe(|spec| {
        spec.env = vec![("PLAIN".into(), "text".into()), ("TOKEN".into(), "overridden".into())];
        spec.secrets = vec![secret("TOKEN", &value)];
    })
    .await;
    let environment = found["environment"].as_object().unwrap();
    // Python adds the last two itself.
    let names = environment.keys().filter(|name| !["LC_CTYPE", "LANG"].contains(&name.as_str()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["HOME", "PATH", "PLAIN", "TOKEN"]);
    assert_eq!(environment["TOKEN"], value);
    assert_eq!(environment["HOME"], "/tmp");
    assert!(!found["arguments"].to_string().contains(&value));
}

#[tokio::test]
async fn a_secret_is_in_no_argument_list_and_no_environment_of_the_launcher() {
    let value = ["hunter", "2"].concat();
    let mut spec = python("import sys; print('up', flush=True); sys.stdin.read()");
    spec.secrets = vec![secret("TOKEN", &value)];
    let mut process = launch(&spec).await.unwrap();
    let mut up = [0; 3];
    process.stdout.read_exact(&mut up).await.unwrap();
    let launcher: u32 = process.handle.describe().rsplit(' ').next().unwrap().parse().unwrap();
    let tree = [vec![launcher], descendants(launcher)].concat();
    assert_eq!(tree.len(), 3, "launcher, first process, program");
    for pid in &tree {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&arguments).contains(&value));
    }
    for pid in &tree[..2] {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&environment).contains(&value));
    }
}

#[tokio::test]
async fn streams_carry_bytes_and_the_exit_code_comes_back() {
    let text = "import sys; d = sys.stdin.read(); print(d.upper(), end=''); print('e', file=sys.stderr); sys.exit(7)";
    let input = "abc\n".repeat(100_000);
    let run = run_with(&python(text), &input).await;
    assert_eq!(run.stdout, input.to_uppercase());
    assert_eq!(run.stderr, "e\n");
    assert_eq!((run.exit.code, run.exit.reason), (7, None));
    let killed = run_with(&python("import os; os.kill(os.getpid(), 9)"), "").await;
    assert_eq!(killed.exit.code, 137);
    assert_eq!(killed.exit.reason.as_deref(), Some("ended by SIGKILL"));
}

#[tokio::test]
async fn mounts_are_read_only_unless_they_are_writable_and_hold_no_programs_then() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(folder.path().join("there"), "seen").unwrap();
    let text = r##"
import os, json
def tried(action):
    try: action(); return "ok"
    except OSError as error: return os.strerror(error.errno)
def program(path):
    open(path, "w").write("#!/bin/sh\n"); os.chmod(path, 0o755)
    pid = os.fork()
    if not pid:
        try: os.execv(path, [path])
        except OSError as error: os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps([
    open("/ro/there").read(),
    tried(lambda: open("/ro/new", "w")),
    tried(lambda: open("/rw/new", "w")),
    program("/rw/program"),
]))"##;
    let mut spec = python(text);
    spec.mounts = vec![mount(folder.path(), "/ro", false), mount(folder.path(), "/rw", true)];
    let found = run(&spec).await;
    assert_eq!(found.stdout.trim(), r#"["seen", "Read-only file system", "ok", 13]"#, "{found:?}");
    assert!(folder.path().join("new").exists());
    spec.hardening.exec_tmp = true;
    assert!(run(&spec).await.stdout.contains(r#""ok", 0]"#));
}

#[tokio::test]
async fn deviations_open_what_they_say_and_nothing_else() {
    let found = probe(|spec| spec.hardening.network = true).await;
    assert_eq!(found["connect"]["host"], "ok");
    assert_eq!(found["write"]["/x"], "Read-only file system");
    let found = probe(|spec| spec.hardening.writable_root = true).await;
    assert_eq!(found["write"]["/x"], "ok");
    assert_ne!(found["write"]["/usr/x"], "ok");
    assert_ne!(found["connect"]["host"], "ok");
    let found = probe(|spec| spec.hardening.user = Some("1234:2345".into())).await;
    assert_eq!(found["ids"], json!([1234, 1234, 2345, 2345]));
    assert_eq!(found["capabilities"], json!(["0000000000000000"]));
}

#[tokio::test]
async fn python_node_and_our_own_programs_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let version = run(&spec(&["portcullis", "--version"])).await;
    assert!(version.stdout.starts_with("portcullis "), "{version:?}");

    let environment = folder.join("venv");
    let made = Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&environment)
        .status()
        .unwrap();
    assert!(made.success());
    let script = environment.join("bin/server");
    let python = environment.join("bin/python3");
    fs::write(
        &script,
        format!("#!{}\nimport sys, ssl, sqlite3; print(sys.prefix)\n", python.display()),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    // By itself, and by a mount.
    let mut mounted = spec(&[&script.display().to_string()]);
    let alone = run(&mounted).await;
    assert_eq!(alone.stdout.trim(), environment.display().to_string(), "{alone:?}");
    mounted.mounts = vec![mount(&folder, folder.to_str().unwrap(), false)];
    assert_eq!(run(&mounted).await.stdout, alone.stdout);

    if installed("node").is_some() {
        let package = folder.join("node_modules/hello");
        fs::create_dir_all(&package).unwrap();
        fs::create_dir_all(folder.join("node_modules/.bin")).unwrap();
        let text = "#!/usr/bin/env node\nimport os from 'node:os'; console.log('node', os.cpus().length > 0, (await fetch('data:,x')).status)\n";
        fs::write(package.join("index.mjs"), text).unwrap();
        fs::set_permissions(package.join("index.mjs"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("../hello/index.mjs", folder.join("node_modules/.bin/hello")).unwrap();
        let hello = folder.join("node_modules/.bin/hello").display().to_string();
        let found = run(&spec(&[&hello])).await;
        assert_eq!(found.stdout.trim(), "node true 200", "{found:?}");
        let mut inside = spec(&["node", "/app/hello/index.mjs"]);
        inside.mounts = vec![mount(&folder.join("node_modules"), "/app", false)];
        let found = run(&inside).await;
        assert_eq!(found.stdout.trim(), "node true 200", "{found:?}");
    }
}

#[tokio::test]
async fn a_fork_bomb_stays_within_its_processes() {
    let text = r#"
import os, time
n = 1
while True:
    try:
        if os.fork() == 0: time.sleep(600)
        n += 1
    except OSError as error:
        print(n, os.strerror(error.errno)); break"#;
    let mut spec = python(text);
    spec.resources.pids = 20;
    let run = run(&spec).await;
    assert_eq!(run.stdout.trim(), "20 Resource temporarily unavailable", "{run:?}");
}

#[tokio::test]
async fn memory_hogs_end_alone_and_together() {
    let mut alone = python("b'x' * (1 << 30)");
    alone.resources.memory_mib = 64;
    let found = run(&alone).await;
    assert!(found.stderr.contains("MemoryError"), "{found:?}");
    for text in [
        "import os, time\nfor _ in range(6): os.fork()\nb = b'x' * (8 << 20)\ntime.sleep(600)",
        "import mmap, time\nm = mmap.mmap(-1, 1 << 30)\nfor i in range(1 << 30 >> 12): m[i << 12] = 1\ntime.sleep(600)",
    ] {
        let mut together = python(text);
        together.resources.memory_mib = 64;
        let found = run(&together).await;
        assert_eq!(found.exit.code, 137, "{found:?}");
        let reason = found.exit.reason.unwrap();
        assert_eq!(reason, "it used more memory than its 64 MiB");
    }
}

#[tokio::test]
async fn usage_is_told_and_a_stop_is_an_end() {
    let text = "import signal, sys\nb = b'x' * (32 << 20)\nfor _ in range(10**7): pass\nprint('up', flush=True)\nsignal.pause()";
    let mut process = launch(&python(text)).await.unwrap();
    process.stdout.read_exact(&mut [0; 3]).await.unwrap();
    let usage = process.handle.usage().await.unwrap();
    assert!((32 << 20..128 << 20).contains(&usage.memory), "{usage:?}");
    assert!(usage.cpu_seconds > 0.01, "{usage:?}");
    process.handle.stop(Duration::from_secs(60)).await;
    assert_eq!(process.handle.wait().await.code, 143);
    assert_eq!(process.handle.usage().await, None);

    // One that does not listen is ended by force.
    let deaf = "import signal, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\nwhile True: signal.pause()";
    let mut process = launch(&python(deaf)).await.unwrap();
    process.stdout.read_exact(&mut [0; 3]).await.unwrap();
    process.handle.stop(Duration::from_millis(50)).await;
    let exit = process.handle.wait().await;
    assert_eq!(exit.code, 137, "{exit:?}");
}

const FAMILY: &str = "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: print('up', flush=True)\ntime.sleep(600)";

#[tokio::test]
async fn dropping_the_handle_ends_the_whole_tree() {
    let mut process = launch(&python(FAMILY)).await.unwrap();
    process.stdout.read_exact(&mut [0; 3]).await.unwrap();
    let launcher: u32 = process.handle.describe().rsplit(' ').next().unwrap().parse().unwrap();
    let tree = [vec![launcher], descendants(launcher)].concat();
    assert_eq!(tree.len(), 5);
    drop(process);
    gone(&tree).await;
}

#[tokio::test]
async fn killing_the_launcher_or_the_first_process_ends_the_whole_tree() {
    for victim in [0, 1] {
        let mut process = launch(&python(FAMILY)).await.unwrap();
        process.stdout.read_exact(&mut [0; 3]).await.unwrap();
        let launcher: u32 = process.handle.describe().rsplit(' ').next().unwrap().parse().unwrap();
        let tree = [vec![launcher], descendants(launcher)].concat();
        kill(tree[victim]);
        assert_eq!(process.handle.wait().await.code, 137);
        gone(&tree).await;
    }
}

#[tokio::test]
async fn where_user_namespaces_are_refused_nothing_runs_without_one() {
    if std::env::var_os(REFUSED).is_some() {
        let failure = launch(&python("print('ran')")).await.unwrap_err();
        assert!(failure.what.contains("user namespace"), "{failure:?}");
        assert!(failure.remedy.unwrap().contains("user.max_user_namespaces"));
        return;
    }
    // The number of namespaces can be limited within one of them, where it harms nobody.
    for (limit, succeeds) in [("0", false), ("100", true)] {
        let this = std::env::current_exe().unwrap();
        let script = format!("echo {limit} > /proc/sys/user/max_user_namespaces && exec \"$@\"");
        let name = match succeeds {
            false => "where_user_namespaces_are_refused_nothing_runs_without_one",
            true => "the_environment_is_what_the_config_says_and_nothing_else",
        };
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "sh", "-c", &script, "sh"])
            .arg(this)
            .args(["--exact", name])
            .env(REFUSED, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Not a test of its own: the process that the next one kills.
#[tokio::test]
async fn holder() {
    if std::env::var_os(HOLDER).is_none() {
        return;
    }
    let mut process = launch(&python(FAMILY)).await.unwrap();
    process.stdout.read_exact(&mut [0; 3]).await.unwrap();
    eprintln!("holding");
    process.handle.wait().await;
}

#[tokio::test]
async fn a_kill_of_the_proxy_ends_the_whole_tree() {
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder", "--nocapture"])
        .env(HOLDER, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stderr.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "holding");
    let tree = descendants(holder.id());
    assert_eq!(tree.len(), 5, "launcher, first process, program, child, grandchild");
    holder.kill().unwrap();
    holder.wait().unwrap();
    gone(&tree).await;
}

#[tokio::test]
async fn what_can_not_be_started_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::write(folder.join("not-executable"), "#!/bin/sh\n").unwrap();
    fs::write(folder.join("no-interpreter"), "#!/no/such/interpreter\n").unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    for (command, words) in [
        (vec![], "no command is given"),
        (vec!["no-such-program".to_owned()], "`no-such-program`"),
        (vec!["/usr/bin".to_owned()], "`/usr/bin` can't be executed"),
        (vec![file("not-executable")], "not-executable` can't be executed: Permission denied"),
        (vec![file("no-interpreter")], "`/no/such/interpreter`"),
        (vec![file("absent")], "No such file"),
    ] {
        let mut spec = spec(&[]);
        spec.command = command;
        let failure = launch(&spec).await.unwrap_err();
        assert!(failure.what.contains(words), "{failure:?}");
    }
    let mut capable = python("");
    capable.hardening.cap_add = vec!["CAP_NET_ADMIN".into()];
    assert!(launch(&capable).await.unwrap_err().what.contains("cap-add"));
    let mut root = python("");
    root.hardening.user = Some("0:0".into());
    assert!(launch(&root).await.unwrap_err().what.contains("`0:0`"));
    // Somebody who tries the hidden verb.
    let output =
        Command::new(PORTCULLIS).arg("sandbox-exec").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
}

#[tokio::test]
async fn what_holds_secrets_or_the_host_is_not_mounted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::create_dir_all(folder.join("home/.ssh")).unwrap();
    fs::create_dir_all(folder.join("fine")).unwrap();
    symlink("/etc", folder.join("link")).unwrap();
    let socket = folder.join("engine.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    for (source, target, writable, refused) in [
        (path("fine"), "/data", true, false),
        ("/usr/share".into(), "/share", false, false),
        ("/".into(), "/host", false, true),
        ("/etc".into(), "/data", false, true),
        ("/proc".into(), "/data", false, true),
        ("/proc/1".into(), "/data", false, true),
        ("/sys".into(), "/data", false, true),
        ("/dev".into(), "/data", false, true),
        ("/run".into(), "/data", false, true),
        ("/var".into(), "/data", false, true),
        ("/home".into(), "/data", false, true),
        ("/usr/share".into(), "/share", true, true),
        (path("home"), "/data", false, true),
        (path("home/.ssh"), "/data", false, true),
        (path("link"), "/data", false, true),
        ("/tmp".into(), "/data", false, true),
        (path("engine.sock"), "/engine.sock", false, true),
        (path("absent"), "/data", false, true),
        (path("fine"), "/", false, true),
        (path("fine"), "/usr/data", false, true),
        (path("fine"), "/proc/data", false, true),
        (path("fine"), "/etc", false, true),
        (path("fine"), "/tmp", false, true),
        (path("fine"), "data", false, true),
        (path("fine"), "/data/../usr", false, true),
    ] {
        let mut spec = python("");
        spec.mounts.push(portcullis::upstream::process::Mount {
            source: source.clone().into(),
            target: target.into(),
            writable,
        });
        match launch(&spec).await {
            Ok(_) => assert!(!refused, "{source}:{target}"),
            Err(failure) => {
                assert!(refused && failure.remedy.is_some(), "{source}:{target}: {failure:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_link_within_a_mount_leads_no_other_mount_astray() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    fs::create_dir_all(folder.join("outer")).unwrap();
    fs::create_dir_all(folder.join("inner")).unwrap();
    symlink("/etc", folder.join("outer/place")).unwrap();
    let mut spec = python("");
    spec.mounts = vec![
        mount(&folder.join("outer"), "/data", true),
        mount(&folder.join("inner"), "/data/place", false),
    ];
    let failure = launch(&spec).await.unwrap_err();
    assert!(failure.what.contains("/data/place"), "{failure:?}");
}

fn kill(pid: u32) {
    let killed = Command::new("/bin/kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success(), "{}", Path::new("/proc").join(pid.to_string()).display());
}
