//! The hardened profile, as the engine reports it.

use std::time::Duration;

use portcullis_runtime::{
    config::{Hardening, Resources},
    container::{Profile, label},
    mount::Mount,
};
use serde_json::{Value, json};

use crate::support::{api, bash, engine, spec};

#[tokio::test]
async fn engine_inspection_equals_the_profile() {
    let engine = engine().await;
    let spec = spec(bash(&engine).await, &["-c", "read"]);
    let process = engine.launch(&spec).await.unwrap();
    let running = engine.list().await.unwrap();
    let running = running.into_iter().find(|c| c.instance == spec.instance).unwrap();

    // In the words of `server inspect`.
    let profile = Profile::of(&spec).unwrap();
    let inspection = engine.inspect(&running.id).await.unwrap();
    if engine.version().warnings.iter().all(|warning| !warning.contains("swap")) {
        assert_eq!(inspection.fields, profile.describe());
    }
    assert_eq!(profile.deviations(), []);

    // And in the engine's own.
    let raw = api().await.inspect_container(&running.id, None).await.unwrap();
    let raw = serde_json::to_value(raw).unwrap();
    let host = &raw["HostConfig"];
    for (field, expected) in [
        ("Privileged", json!(false)),
        ("CapDrop", json!(["ALL"])),
        ("ReadonlyRootfs", json!(true)),
        ("Tmpfs", json!({ "/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777" })),
        ("Memory", json!(512 << 20)),
        ("MemorySwap", json!(512 << 20)),
        ("NanoCpus", json!(1_000_000_000)),
        ("PidsLimit", json!(128)),
        ("OomKillDisable", json!(false)),
        ("NetworkMode", json!("none")),
        ("IpcMode", json!("private")),
        ("PidMode", json!("")),
        ("UTSMode", json!("")),
        ("UsernsMode", json!("")),
        ("CgroupnsMode", json!("private")),
        ("Init", json!(true)),
        ("AutoRemove", json!(true)),
        ("RestartPolicy", json!({ "Name": "no", "MaximumRetryCount": 0 })),
        ("LogConfig", json!({ "Type": "none", "Config": {} })),
        ("PublishAllPorts", json!(false)),
    ] {
        assert_eq!(host[field], expected, "{field}");
    }
    for field in [
        "CapAdd",
        "Binds",
        "Devices",
        "DeviceRequests",
        "GroupAdd",
        "PortBindings",
        "Mounts",
        "VolumesFrom",
    ] {
        let value = &host[field];
        let empty = value.is_null()
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty);
        assert!(empty, "{field}: {value}");
    }
    let mut ulimits: Vec<&Value> = host["Ulimits"].as_array().unwrap().iter().collect();
    ulimits.sort_by_key(|limit| limit["Name"].to_string());
    assert_eq!(
        json!(ulimits),
        json!([{ "Name": "core", "Soft": 0, "Hard": 0 }, { "Name": "nofile", "Soft": 1024, "Hard": 1024 }])
    );
    let security: Vec<&str> = crate::support::strings(&host["SecurityOpt"]);
    assert_eq!(security[0], "no-new-privileges:true");
    let seccomp: Value =
        serde_json::from_str(security[1].strip_prefix("seccomp=").unwrap()).unwrap();
    assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ERRNO");
    // Left to the engine, whose own lists they are.
    assert!(host["MaskedPaths"].as_array().is_some_and(|paths| paths.len() > 5));
    assert!(host["ReadonlyPaths"].as_array().is_some_and(|paths| paths.len() > 3));

    let config = &raw["Config"];
    assert_eq!(config["User"], "65534:65534");
    assert_eq!(config["Tty"], false);
    assert_eq!(config["StdinOnce"], true);
    assert_eq!(config["Healthcheck"]["Test"], json!(["CMD", "/sbin/docker-init", "--version"]));
    for (key, value) in [
        (label::INSTANCE, spec.instance.as_str()),
        (label::SERVER, "subject"),
        (label::PROFILE, profile.hash().as_str()),
    ] {
        assert_eq!(config["Labels"][key], value, "{key}");
    }
    assert!(
        config["Labels"][label::OWNER].as_str().unwrap().contains(&std::process::id().to_string())
    );
    process.handle.stop(Duration::from_secs(1)).await;
}

/// A change to a default launch, and the fields in which the profile then deviates.
type Change = (fn(&mut Hardening, &mut Resources), &'static [(&'static str, &'static str)]);

#[tokio::test]
async fn each_deviation_is_listed_and_applied() {
    let engine = engine().await;
    let image = bash(&engine).await;
    let changes: [Change; 8] = [
        (|h, _| h.network = true, &[("NetworkMode", "hardening.network")]),
        (|h, _| h.writable_root = true, &[("ReadonlyRootfs", "hardening.writable-root")]),
        (|h, _| h.user = Some("1000:1000".into()), &[("User", "hardening.user")]),
        (|h, _| h.cap_add = vec!["net_bind_service".into()], &[("CapAdd", "hardening.cap-add")]),
        (|h, _| h.exec_tmp = true, &[("Tmpfs", "hardening.exec-tmp")]),
        (|_, r| r.memory_mib = 64, &[("Memory", "resources.memory-mib")]),
        (|_, r| r.cpus = 0.5, &[("NanoCpus", "resources.cpus")]),
        (|_, r| r.pids = 16, &[("PidsLimit", "resources.pids")]),
    ];
    for (change, expected) in changes {
        let mut spec = spec(image.clone(), &["-c", "read"]);
        change(&mut spec.hardening, &mut spec.resources);
        let profile = Profile::of(&spec).unwrap();
        let deviations = profile.deviations();
        let listed: Vec<_> = deviations.iter().map(|d| (d.field, d.config_key)).collect();
        assert_eq!(listed, expected);
        assert!(deviations.iter().all(|d| d.default != d.actual));

        let process = engine.launch(&spec).await.unwrap();
        let inspection = engine.inspect(&running(&engine, &spec.instance).await).await.unwrap();
        for (field, value) in profile.describe() {
            let seen = inspection.fields.iter().find(|(name, _)| *name == field).unwrap();
            assert_eq!(seen.1, value, "{field}");
        }
        assert_eq!(inspection.profile, profile.hash());
        process.handle.stop(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn mounts_are_listed_as_deviations_and_in_the_engines_inspection() {
    let engine = engine().await;
    let folder = tempfile::tempdir().unwrap();
    let mut spec = spec(bash(&engine).await, &["-c", "read"]);
    spec.mounts =
        vec![Mount { source: folder.path().to_owned(), target: "/data".into(), writable: false }];
    let profile = Profile::of(&spec).unwrap();
    let line = format!("{}:/data:ro", std::fs::canonicalize(folder.path()).unwrap().display());
    assert_eq!(profile.deviations()[0].actual, line);
    let process = engine.launch(&spec).await.unwrap();
    let inspection = engine.inspect(&running(&engine, &spec.instance).await).await.unwrap();
    assert!(inspection.fields.contains(&("Mounts".to_owned(), line)));
    process.handle.stop(Duration::ZERO).await;
}

async fn running(engine: &portcullis_runtime::container::Engine, instance: &str) -> String {
    let all = engine.list().await.unwrap();
    all.into_iter().find(|container| container.instance == instance).unwrap().id
}
