//! The access of a confined server, as the probe measures it.

use std::{fs, time::Duration};

use bollard::{
    models::ContainerConfig, query_parameters::CommitContainerOptionsBuilder,
    query_parameters::RemoveImageOptionsBuilder,
};
use portcullis_runtime::mount::Mount;
use portcullis_vault::Secret;
use rmcp::{ServiceExt, model::CallToolRequestParams};
use serde_json::{Value, json};

use crate::{
    set_id_calls::{CALLS, assert_all_refused, folder},
    support::{api, bash, engine, probe, report, run, spec, strings},
};

#[tokio::test]
async fn probe_finds_only_what_the_profile_allows() {
    let engine = engine().await;
    let report = report(&engine, spec("", &[])).await;

    assert_eq!((&report["uid"], &report["gid"]), (&json!(65534), &json!(65534)));
    assert_eq!(report["capabilities"].as_object().unwrap().len(), 5);
    for (set, held) in report["capabilities"].as_object().unwrap() {
        assert_eq!(strings(held), [""; 0], "{set}");
    }
    assert_eq!(report["no_new_privs"], true);
    assert_eq!(report["seccomp"], 2);

    assert_eq!(report["writes"]["/"], "EROFS");
    // The engine's own tmpfs for POSIX shared memory and message queues, private to the container.
    let writable = strings(&report["writable"]);
    assert!(
        writable.iter().all(|place| ["/tmp", "/dev/shm", "/dev/mqueue"].contains(place)),
        "{writable:?}"
    );
    assert_eq!(report["exec_from_tmp"], "EACCES");

    assert_eq!(strings(&report["interfaces"]), [""; 0]);
    let connects = report["connects"].as_object().unwrap();
    assert_eq!(connects.len(), 2);
    for (address, outcome) in connects {
        let expected = if address.starts_with("127.") { "ECONNREFUSED" } else { "ENETUNREACH" };
        assert_eq!(outcome, expected, "{address}");
    }

    let open: Vec<_> = report["sockets"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, outcome)| *outcome == "ok")
        .map(|(family, _)| family.as_str())
        .collect();
    assert_eq!(open, ["inet", "inet-udp", "inet6", "netlink-route", "unix"]);
    for (name, outcome) in report["calls"].as_object().unwrap() {
        let expected = if name == "clone3" { "ENOSYS" } else { "EPERM" };
        assert_eq!(outcome, expected, "{name}");
    }
    for (file, outcome) in report["proc_writes"].as_object().unwrap() {
        assert_ne!(outcome, "ok", "{file}");
    }

    let usual = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    ];
    for device in strings(&report["devices"]) {
        assert!(usual.contains(&device), "{device}");
    }
    assert_eq!(report["limits"]["pids"], 128);
    assert_eq!(report["limits"]["memory"], 512 << 20);
    assert_eq!(report["limits"]["open_files"], "1024:1024");
    assert_eq!(report["limits"]["core"], "0:0");
    assert_eq!(strings(&report["host_files"]), [""; 0]);
    assert_eq!(strings(&report["processes"]).len(), 2, "{}", report["processes"]);
    let names: Vec<_> = report["env"].as_object().unwrap().keys().cloned().collect();
    assert!(
        names.iter().all(|n| ["HOME", "HOSTNAME", "LD_LIBRARY_PATH", "PATH"].contains(&n.as_str())),
        "{names:?}"
    );
}

#[tokio::test]
async fn deviations_change_only_their_setting() {
    let engine = engine().await;
    let plain = report(&engine, spec("", &[])).await;
    let differing = |loose: &Value| -> Vec<String> {
        let fields = plain.as_object().unwrap().iter();
        // The host's name is the container's id, and numbers of processes vary.
        let told = fields.filter(|(k, _)| !["env", "processes"].contains(&k.as_str()));
        told.filter(|(k, v)| loose[*k] != **v).map(|(k, _)| k.clone()).collect()
    };

    let mut exec = spec("", &[]);
    exec.hardening.exec_tmp = true;
    let loose = report(&engine, exec).await;
    assert_eq!(loose["exec_from_tmp"], "ok");
    assert_eq!(differing(&loose), ["exec_from_tmp"]);

    let mut root = spec("", &[]);
    root.hardening.user = Some("0:0".into());
    root.hardening.cap_add = vec!["CAP_NET_BIND_SERVICE".into()];
    let loose = report(&engine, root).await;
    assert_eq!(loose["uid"], 0);
    assert_eq!(strings(&loose["capabilities"]["effective"]), ["CAP_NET_BIND_SERVICE"]);
    assert_eq!(loose["writes"]["/"], "EROFS");
    assert_eq!(loose["calls"], plain["calls"]);

    let mut writable = spec("", &[]);
    writable.hardening.writable_root = true;
    writable.hardening.user = Some("0:0".into());
    assert_eq!(report(&engine, writable).await["writes"]["/"], "ok");

    let mut network = spec("", &[]);
    network.hardening.network = true;
    let loose = report(&engine, network).await;
    assert_eq!(strings(&loose["interfaces"]), ["eth0"]);
}

#[tokio::test]
async fn server_answers_over_its_streams() {
    let engine = engine().await;
    let mut spec = spec(engine.pack(probe()).await.unwrap(), &[]);
    let secret = ["not", "for", "labels"].concat();
    spec.env = vec![("PLAIN".into(), "seen".into())];
    spec.secrets = vec![("TOKEN".into(), Secret::new(secret.clone()))];
    let process = engine.launch(&spec).await.unwrap();

    // The secret is in the environment, and in nothing else that the engine tells.
    let running = engine.list().await.unwrap();
    let running = running.into_iter().find(|c| c.instance == spec.instance).unwrap();
    assert!(!format!("{running:?} {process:?}").contains(&secret));
    let inspection = engine.inspect(&running.id).await.unwrap();
    assert!(inspection.env.contains(&"TOKEN".to_owned()));
    assert!(!format!("{inspection:?}").contains(&secret));

    let client = ().serve((process.stdout, process.stdin)).await.unwrap();
    let result = client.call_tool(CallToolRequestParams::new("probe")).await.unwrap();
    let report = serde_json::to_value(result).unwrap()["structuredContent"].clone();
    assert_eq!(report["env"]["PLAIN"], "seen");
    assert_eq!(report["env"]["TOKEN"], secret);
    assert_eq!(report["seccomp"], 2);
    let usage = process.handle.usage().await.unwrap();
    assert!(usage.memory > 100_000 && usage.memory < 512 << 20, "{usage:?}");
    assert!(usage.cpu_seconds > 0.0);
    client.cancel().await.unwrap();
    process.handle.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn mounts_are_read_only_by_default() {
    let engine = engine().await;
    let folder = folder();
    fs::write(folder.path().join("note"), "kept\n").unwrap();
    for (writable, code) in [(false, 1), (true, 0)] {
        let script = "read line < /data/note && echo $line; echo new > /data/made";
        let mut spec = spec(bash(&engine).await, &["-c", script]);
        spec.mounts =
            vec![Mount { source: folder.path().to_owned(), target: "/data".into(), writable }];
        let ran = run(&engine, &spec).await;
        assert_eq!((ran.stdout.as_str(), ran.exit.code), ("kept\n", code), "{}", ran.stderr);
        assert_eq!(folder.path().join("made").exists(), writable);
    }
}

/// Such a program would run as the container's user for anybody who starts it on the host.
#[tokio::test]
async fn setuid_bit_cannot_be_set_in_a_writable_mount() {
    let engine = engine().await;
    let image = engine.pack(probe()).await.unwrap();
    for user in [None, Some("0:0")] {
        let folder = folder();
        let words = [&["--attempts"], &CALLS[..], &["folder=/data"]].concat();
        let mut spec = spec(image.clone(), &words);
        spec.hardening.user = user.map(str::to_owned);
        let source = fs::canonicalize(folder.path()).unwrap();
        spec.mounts = vec![Mount { source, target: "/data".into(), writable: true }];
        let ran = run(&engine, &spec).await;
        assert_all_refused(&ran.stdout);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// The image's own settings request more than the profile allows.
#[tokio::test]
async fn image_settings_do_not_change_the_profile() {
    let (engine, api) = (engine().await, api().await);
    let parked = engine.launch(&spec(bash(&engine).await, &["-c", "read"])).await.unwrap();
    let id = parked.handle.describe().replace("container ", "");
    let config = ContainerConfig {
        user: Some("0:0".into()),
        volumes: Some(vec!["/data".into()]),
        stop_signal: Some("SIGKILL".into()),
        labels: Some(
            [
                ("dev.portcullis.instance".to_owned(), "theirs".to_owned()),
                ("dev.portcullis.owner".to_owned(), "theirs".to_owned()),
            ]
            .into(),
        ),
        healthcheck: Some(bollard::models::HealthConfig {
            test: Some(vec!["CMD".into(), "/app/bash".into(), "-c".into(), ":".into()]),
            ..Default::default()
        }),
        entrypoint: Some(vec!["/app/bash".into()]),
        env: Some(vec!["PATH=/app".into(), "LD_LIBRARY_PATH=/lib/x86_64-linux-gnu".into()]),
        ..Default::default()
    };
    let options = CommitContainerOptionsBuilder::new().container(&id).build();
    let image = api.commit_container(options, config).await.unwrap().id;
    parked.handle.stop(Duration::ZERO).await;

    let script = "echo $UID; echo x > /data/a && read x < /data/a && echo $x; \
                  while read d m t o r; do [[ $m == /data ]] && echo $t $o; done < /proc/mounts; read";
    let spec = spec(image.clone(), &["-c", script]);
    let mut process = engine.launch(&spec).await.unwrap();
    let running = engine.list().await.unwrap();
    let running = running.into_iter().find(|c| c.instance == spec.instance).unwrap();
    let inspection = engine.inspect(&running.id).await.unwrap();
    let field = |name| &inspection.fields.iter().find(|(field, _)| field == name).unwrap().1;
    assert_eq!(field("User"), "65534:65534");
    assert!(field("Tmpfs").starts_with("/data rw,noexec"), "{}", field("Tmpfs"));
    assert_eq!(field("Healthcheck"), "CMD /sbin/docker-init --version");
    let raw = api.inspect_container(&running.id, None).await.unwrap();
    assert!(raw.mounts.unwrap_or_default().iter().all(|mount| mount.name.is_none()), "a volume");

    drop(process.stdin);
    let mut seen = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut process.stdout, &mut seen).await.unwrap();
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines[..2], ["65534", "x"]);
    assert!(lines[2].starts_with("tmpfs rw,nosuid,nodev,noexec"), "{seen}");
    process.handle.stop(Duration::ZERO).await;
    let force = RemoveImageOptionsBuilder::new().force(true).build();
    api.remove_image(&image, Some(force), None).await.unwrap();
}
