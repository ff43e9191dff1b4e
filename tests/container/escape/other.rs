//! Attempts that need more than a program in the container.

use std::{
    fs, os::unix::fs::symlink, path::Path, pin::pin, process::Stdio, sync::Arc, time::Duration,
};

use bollard::models::{ContainerCreateBody, HostConfig};
use portcullis_runtime::{container::Engine, mount::Mount};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use uuid::Uuid;

use crate::support::{api, bash, count, engine, finish, probe, run, spec, wait_until_gone};

#[tokio::test]
async fn engine_socket_cannot_be_mounted() {
    let engine = engine().await;
    let image = bash(&engine).await;
    let folder = tempfile::tempdir().unwrap();
    let host = engine.version().host.clone();
    let socket = fs::canonicalize(host.trim_start_matches("unix://")).unwrap();
    let above = socket.parent().unwrap();
    for (name, to) in [("socket", socket.as_path()), ("folder", above), ("root", Path::new("/"))] {
        symlink(to, folder.path().join(name)).unwrap();
    }
    let below_root = socket.strip_prefix("/").unwrap();
    for source in [
        socket.clone(),
        above.to_owned(),
        Path::new("/usr/..").join(below_root),
        Path::new("/proc/self/root").join(below_root),
        folder.path().join("socket"),
        folder.path().join("folder"),
        folder.path().join("root").join(below_root),
        folder.path().join("root").join(below_root.parent().unwrap()),
    ] {
        let mut spec = spec(image.clone(), &["-c", "read"]);
        let target = "/data".into();
        spec.mounts = vec![Mount { source: source.clone(), target, writable: false }];
        let refused = engine.launch(&spec).await.unwrap_err();
        assert!(refused.what.contains("may not be mounted"), "{}: {refused}", source.display());
        assert_eq!(count(&engine, &spec.instance).await, 0);
    }
}

/// Proxy to the engine that calls `when_asked` for a request about an image: in a launch that is the
/// first request after the check of the mounts.
async fn proxy_to_the_engine(listener: UnixListener, when_asked: Arc<dyn Fn() + Send + Sync>) {
    let host = engine().await.version().host.clone();
    while let Ok((mut client, _)) = listener.accept().await {
        let mut engine = UnixStream::connect(host.trim_start_matches("unix://")).await.unwrap();
        let when_asked = when_asked.clone();
        tokio::spawn(async move {
            let (mut asked, mut told) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            loop {
                let (to, bytes) = tokio::select! {
                    Ok(n @ 1..) = client.read(&mut asked) => (&mut engine, &asked[..n]),
                    Ok(n @ 1..) = engine.read(&mut told) => (&mut client, &told[..n]),
                    else => return,
                };
                let text = String::from_utf8_lossy(bytes);
                if text.starts_with("GET ") && text.contains("/images/") {
                    when_asked();
                }
                if to.write_all(bytes).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Anything with write access to the parent folder can do this, for example a server that mounts
/// it.
#[tokio::test]
async fn mount_source_swapped_for_a_link_does_not_run() {
    let engine = engine().await;
    let image = bash(&engine).await;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    for swapped in [false, true] {
        let mut spec = spec(image.clone(), &["-c", "read"]);
        let target = "/data".into();
        spec.mounts = vec![Mount { source: source.clone(), target, writable: true }];
        let socket = folder.path().join(format!("engine-{swapped}"));
        let url = format!("unix://{}", socket.display());
        let swap = {
            let source = source.clone();
            move || {
                if swapped {
                    fs::remove_dir(&source).unwrap();
                    symlink("/etc", &source).unwrap();
                }
            }
        };
        tokio::spawn(proxy_to_the_engine(UnixListener::bind(&socket).unwrap(), Arc::new(swap)));
        let between = Engine::connect(Some(&url)).await.unwrap();
        let launched = between.launch(&spec).await;
        if swapped {
            let refused = launched.expect_err("something else is mounted");
            assert!(refused.what.contains("is not the one that was checked"), "{}", refused.what);
        } else {
            launched.unwrap().handle.stop(Duration::ZERO).await;
        }
        wait_until_gone(&engine, &spec.instance).await;
    }
}

#[tokio::test]
async fn endless_output_of_a_server_fills_no_disk() {
    let (engine, api) = (engine().await, api().await);
    let image = bash(&engine).await;
    // 1 MiB of errors, then it waits.
    let line = "x".repeat(1023);
    let script = format!("for ((n = 0; n < 1024; n++)); do echo {line} >&2; done; echo done; read");
    let ours = spec(image.clone(), &["-c", &script]);
    let mut process = engine.launch(&ours).await.unwrap();
    let flood = async {
        tokio::io::copy(&mut process.stderr, &mut tokio::io::sink()).await.unwrap();
    };
    let done = async {
        let mut done = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut process.stdout, &mut done).await.unwrap();
    };
    tokio::select! {
        () = flood => panic!("it ended"),
        () = done => {}
    }
    let all = engine.list().await.unwrap();
    let id = all.into_iter().find(|c| c.instance == ours.instance).unwrap().id;
    let log = api.inspect_container(&id, None).await.unwrap().log_path.unwrap_or_default();
    assert_eq!(log, "", "the engine keeps what it writes");
    process.handle.stop(Duration::ZERO).await;

    // The engine's default writes all of it down.
    let body = ContainerCreateBody {
        image: Some(image),
        cmd: Some(vec!["-c".into(), script]),
        open_stdin: Some(true),
        host_config: Some(HostConfig::default()),
        ..Default::default()
    };
    let id = api.create_container(None, body).await.unwrap().id;
    api.start_container(&id, None).await.unwrap();
    let log = api.inspect_container(&id, None).await.unwrap().log_path.unwrap_or_default();
    let force = bollard::query_parameters::RemoveContainerOptionsBuilder::new().force(true).build();
    api.remove_container(&id, Some(force)).await.unwrap();
    assert_ne!(log, "");
}

#[tokio::test]
async fn background_process_ends_with_its_server() {
    let engine = engine().await;
    // One that no signal but the last wakes.
    let script = "trap '' TERM HUP INT; (kill -STOP $BASHPID) & echo $HOSTNAME";
    let spec = spec(bash(&engine).await, &["-c", script]);
    let ran = run(&engine, &spec).await;
    assert_eq!(ran.exit.code, 0, "{}", ran.stderr);
    wait_until_gone(&engine, &spec.instance).await;
    let id = ran.stdout.trim();
    assert_eq!(id.len(), 12, "{id}");
    let groups = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|process| fs::read_to_string(process.path().join("cgroup")).ok());
    assert_eq!(groups.filter(|group| group.contains(id)).count(), 0);
}

/// The engine enters like this for a health check. The control may trace, and can open it.
#[tokio::test]
async fn entering_engine_process_cannot_be_opened() {
    let engine = engine().await;
    let image = engine.pack(probe()).await.unwrap();
    let spec = spec(image.clone(), &["--watch"]);
    let process = engine.launch(&spec).await.unwrap();
    let all = engine.list().await.unwrap();
    let id = all.into_iter().find(|c| c.instance == spec.instance).unwrap().id;
    let ran = visited(&id, finish(process, "")).await;
    assert_eq!(ran.stdout, "[]", "{} {:?}", ran.stderr, ran.exit);

    let name = format!("escape-{}", Uuid::now_v7().simple());
    let mut control = tokio::process::Command::new("docker");
    control.args(["run", "--rm", "--pull", "never", "--init", "--user", "0:0"]);
    control.args(["--cap-add", "SYS_PTRACE", "--name"]);
    let control = control.args([&name, &image, "--watch"]).stdin(Stdio::null()).output();
    let output = visited(&name, control).await.expect("docker");
    let opened: Vec<String> = serde_json::from_slice(&output.stdout).unwrap();
    assert_ne!(opened, [""; 0]);
}

/// Has the engine start programs in a container until it has seen enough of them.
async fn visited<T>(id: &str, watching: impl Future<Output = T>) -> T {
    let come = || {
        let mut command = tokio::process::Command::new("docker");
        command.args(["exec", id, "/sbin/docker-init", "--version"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    let mut watching = pin!(watching);
    let seen = async {
        loop {
            tokio::select! {
                seen = &mut watching => break seen,
                come = come() => drop(come.expect("docker")),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), seen).await.expect("to see enough")
}
