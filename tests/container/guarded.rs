//! Servers in containers of an engine behind the guard: the guard accepts all requests of the
//! proxy, and refuses settings that its operator does not allow.

use std::{path::Path, time::Duration};

use portcullis_guard::{Allow, Guard, MountRule, Rules};
use portcullis_runtime::{
    container::{self, Engine},
    mount::Mount,
    started::Process,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::{
    egress_origin::{Recorder, origin, serve},
    support::{api, bash, count, finish, probe, run, spec, wait_until_gone},
};

struct Guarded {
    engine: Engine,
    socket: std::path::PathBuf,
    end: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// The engine of this machine behind a guard with these rules.
async fn guarded(name: &str, loosen: impl FnOnce(&mut Rules)) -> Guarded {
    let host = crate::support::engine().await.version().host.clone();
    let socket = host.strip_prefix("unix://").expect("a socket").to_owned();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guard.sock");
    let mut rules = container::guard_rules(&format!("{name}-{}", std::process::id()));
    rules.allow.insert(Allow::Pack);
    loosen(&mut rules);
    let guard = Guard::listen(rules, socket.into(), &path, 0o600).await.expect("a guard");
    let end = CancellationToken::new();
    tokio::spawn(guard.serve(end.clone()));
    let engine = Engine::connect(Some(&format!("unix://{}", path.display()))).await;
    let engine = engine.expect("an engine behind the guard");
    Guarded { engine, socket: path, end, _folder: folder }
}

#[tokio::test]
async fn server_runs_and_ends_behind_the_guard() {
    let guarded = guarded("life", |_| {}).await;
    let engine = &guarded.engine;
    let script = "while read line; do echo got $line; done; echo over >&2; exit 3";
    let served = spec(bash(engine).await, &["-c", script]);
    let ran = finish(engine.launch(&served).await.unwrap(), "a\nb\n").await;
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str(), ran.exit.code),
        ("got a\ngot b\n", "over\n", 3)
    );
    wait_until_gone(engine, &served.instance).await;

    // What it uses is told, and it is stopped.
    let served = spec(bash(engine).await, &["-c", "read; sleep 600"]);
    let process = engine.launch(&served).await.unwrap();
    assert!(process.handle.usage().await.expect("its use").memory > 0);
    assert_eq!(count(engine, &served.instance).await, 1);
    process.handle.stop(Duration::from_secs(1)).await;
    wait_until_gone(engine, &served.instance).await;

    // One that is dropped, and one that is reaped.
    let served = spec(bash(engine).await, &["-c", "read; read"]);
    drop(engine.launch(&served).await.unwrap());
    wait_until_gone(engine, &served.instance).await;
    let process = engine.launch(&served).await.unwrap();
    assert_eq!(engine.reap(&served.instance).await.unwrap(), 1);
    drop(process);
    assert_eq!(count(engine, &served.instance).await, 0);
}

/// Two containers, one of which joins the network that the other holds for it.
#[tokio::test]
async fn guard_allows_egress_but_not_the_network_of_another_server() {
    let guarded = guarded("door", |_| {}).await;
    let engine = &guarded.engine;
    let (port, gate) = (origin(), std::sync::Arc::new(Recorder::default()));
    let place = format!("web.example:{port}");
    let mut leading = spec(engine.pack(probe()).await.unwrap(), &["--first", &place]);
    leading.egress = vec![format!("http://{place}=127.0.0.1").parse().unwrap()];
    let process = serve(engine.launch(&leading).await.unwrap(), &leading, gate);
    let ran = finish(process, "").await;
    assert!(ran.stdout.contains("seen: GET /first"), "{} {}", ran.stdout, ran.stderr);
    wait_until_gone(engine, &leading.instance).await;

    // A server is made to join what is another's, by hand.
    let mut other = spec(bash(engine).await, &["-c", "read"]);
    other.egress.clone_from(&leading.egress);
    let process = engine.launch(&other).await.unwrap();
    let all = engine.list().await.unwrap();
    let all: Vec<_> = all.into_iter().filter(|one| one.instance == other.instance).collect();
    assert_eq!(all.len(), 2);
    let docker = bollard::Docker::connect_with_unix(
        guarded.socket.to_str().unwrap(),
        30,
        bollard::API_DEFAULT_VERSION,
    );
    let docker = docker.unwrap().negotiate_version().await.unwrap();
    let joined = all.iter().find(|one| one.holds.is_none()).unwrap();
    let holder = all.iter().find(|one| one.holds.is_some()).unwrap();
    let made = api().await.inspect_container(&joined.id, None).await.unwrap();
    for (network, name) in [
        // Somebody has joined it; it is no holder; it is not there.
        (&holder.id, format!("portcullis-subject-{}", uuid::Uuid::now_v7().simple())),
        (&holder.id, joined.name.clone()),
        (&joined.id, format!("portcullis-subject-{}", uuid::Uuid::now_v7().simple())),
        (&"0".repeat(64), joined.name.clone()),
    ] {
        let config = made.config.clone().unwrap();
        let mut labels = config.labels.unwrap();
        labels.retain(|key, _| {
            use portcullis_runtime::container::label::{INSTANCE, OWNER, PROFILE, SERVER};
            [INSTANCE, OWNER, PROFILE, SERVER].contains(&key.as_str())
        });
        // What the engine says of it that it was told.
        const TOLD: &str = "Privileged CapDrop SecurityOpt ReadonlyRootfs Tmpfs Memory MemorySwap \
            NanoCpus PidsLimit Ulimits OomKillDisable IpcMode CgroupnsMode Init RestartPolicy \
            AutoRemove LogConfig PublishAllPorts";
        let mut host = serde_json::to_value(&made.host_config).unwrap();
        host.as_object_mut().unwrap().retain(|key, value| {
            TOLD.split_ascii_whitespace().any(|told| told == key) && !value.is_null()
        });
        host["NetworkMode"] = format!("container:{network}").into();
        let body = bollard::models::ContainerCreateBody {
            image: made.image.clone(),
            env: Some(Vec::new()),
            user: config.user.clone(),
            open_stdin: Some(true),
            stdin_once: Some(true),
            labels: Some(labels),
            healthcheck: config.healthcheck.clone(),
            host_config: Some(serde_json::from_value(host).unwrap()),
            ..Default::default()
        };
        let options = bollard::query_parameters::CreateContainerOptionsBuilder::new().name(&name);
        let refused = docker.create_container(Some(options.build()), body).await.unwrap_err();
        assert!(refused.to_string().contains("holds for it only"), "{refused}");
    }
    process.handle.stop(Duration::ZERO).await;
    assert_eq!(count(engine, &other.instance).await, 0);
}

#[tokio::test]
async fn guard_forwards_large_messages_with_backpressure() {
    let guarded = guarded("streams", |_| {}).await;
    let engine = &guarded.engine;
    let image = engine.pack(Path::new("/bin/cat")).await.unwrap();
    let line = "0123456789abcdef".repeat(1 << 19);
    let ran = finish(engine.launch(&spec(image, &[])).await.unwrap(), &line).await;
    assert!(ran.stdout == line, "{} of {} bytes", ran.stdout.len(), line.len());

    // It writes 64 MiB and says on standard error how far it is: nobody reads, so it does not get
    // far, until somebody reads.
    let script = "for ((i = 0; i < 1024; i++)); do printf '%065536d' 0; done; read";
    let served = spec(bash(engine).await, &["-c", script]);
    let Process { stdin, mut stdout, stderr: _stderr, handle, .. } =
        engine.launch(&served).await.unwrap();
    let mut first = [0; 1024];
    stdout.read_exact(&mut first).await.unwrap();
    let mut all = Vec::new();
    let mut stdin = stdin;
    let reading = async {
        stdin.write_all(b"\n").await.unwrap();
        stdout.read_to_end(&mut all).await.unwrap()
    };
    assert_eq!(reading.await + 1024, 64 << 20);
    handle.wait().await;
}

#[tokio::test]
async fn guard_accepts_only_allowed_deviations() {
    let folder = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
    let source = std::fs::canonicalize(folder.path()).unwrap();
    let strict = guarded("strict", |_| {}).await;
    let path = source.clone();
    let loose = guarded("loose", move |rules| {
        rules.allow.extend([Allow::WritableRoot, Allow::ExecTmp, Allow::Network, Allow::Root]);
        rules.capabilities.insert("CAP_NET_BIND_SERVICE".to_owned());
        rules.mounts.push(MountRule { path, writable: true });
        rules.memory = 8 << 30;
    })
    .await;
    let image = bash(&strict.engine).await;
    type Loosen = fn(&mut portcullis_runtime::process::LaunchSpec, &Path);
    let cases: [(&str, Loosen); 7] = [
        ("writable-root", |spec, _| spec.hardening.writable_root = true),
        ("exec-tmp", |spec, _| spec.hardening.exec_tmp = true),
        ("network", |spec, _| spec.hardening.network = true),
        ("root", |spec, _| spec.hardening.user = Some("0:0".to_owned())),
        ("--cap-add", |spec, _| spec.hardening.cap_add = vec!["NET_BIND_SERVICE".to_owned()]),
        ("--mount", |spec, source| {
            spec.mounts =
                vec![Mount { source: source.to_owned(), target: "/data".into(), writable: true }];
        }),
        ("Memory", |spec, _| spec.resources.memory_mib = 6 << 10),
    ];
    for (what, loosen) in cases {
        let mut loosened = spec(image.clone(), &["-c", "echo here"]);
        loosen(&mut loosened, &source);
        let Err(refused) = strict.engine.launch(&loosened).await else { panic!("{what}") };
        assert!(refused.what.contains("guard-") && refused.what.contains(what), "{refused:?}");
        let ran = run(&loose.engine, &loosened).await;
        assert_eq!(ran.stdout, "here\n", "{what}: {} {:?}", ran.stderr, ran.exit);
    }
}

#[tokio::test]
async fn container_ends_with_the_connection_of_its_proxy() {
    let guarded = guarded("lease", |_| {}).await;
    let engine = &guarded.engine;
    // It does not act on the end of its input.
    let script = "while :; do read -t 9 <> /tmp/p; done";
    let served = spec(bash(engine).await, &["-c", script]);
    // As a proxy that was killed leaves it: its connections end, and it removes nothing.
    let (theirs, asked) = (engine.clone(), served.clone());
    let ended = std::thread::spawn(move || {
        let proxy = tokio::runtime::Runtime::new().unwrap();
        let process = proxy.block_on(theirs.launch(&asked)).unwrap();
        // Its handle would end the container.
        std::mem::forget(process.handle);
        (proxy, (process.stdin, process.stdout, process.stderr))
    });
    // Not waited for in the guard's own way.
    let (proxy, streams) = tokio::task::spawn_blocking(|| ended.join().unwrap()).await.unwrap();
    let api = api().await;
    let id = engine.list().await.unwrap().into_iter().find(|c| c.instance == served.instance);
    let id = id.expect("a container").id;
    let gone = api.wait_container(
        &id,
        Some(
            bollard::query_parameters::WaitContainerOptionsBuilder::new()
                .condition("removed")
                .build(),
        ),
    );
    drop(streams);
    proxy.shutdown_background();
    let over = futures_util::StreamExt::collect::<Vec<_>>(gone);
    drop(tokio::time::timeout(Duration::from_secs(120), over).await.expect("to be removed"));
    assert_eq!(count(engine, &served.instance).await, 0);
}
