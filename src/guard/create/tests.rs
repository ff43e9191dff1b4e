use serde_json::json;

use super::*;

const NAMED: &str = "portcullis-notes-0123";

fn rules() -> Rules {
    let seccomp = json!({"defaultAction": "SCMP_ACT_ERRNO"});
    Rules::new("test", seccomp, [192, 31, 196])
}

/// Request for a server with default settings.
fn body() -> Value {
    let image = format!("sha256:{}", "0".repeat(64));
    json!({
        "Image": image, "Cmd": ["a"], "Env": ["A=1"], "User": "65534:65534",
        "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
        "OpenStdin": true, "StdinOnce": true, "Tty": false, "StopSignal": "SIGTERM",
        "Labels": {
            label::OWNER: "m b n 1 2", label::INSTANCE: "i", label::SERVER: "notes",
            label::PROFILE: "p",
        },
        "Healthcheck": {
            "Test": ["CMD", "/sbin/docker-init", "--version"], "Interval": 30_000_000_000_u64,
            "Timeout": 5_000_000_000_u64, "Retries": 3, "StartPeriod": 1_000_000,
        },
        "HostConfig": {
            "Privileged": false, "CapDrop": ["ALL"], "CapAdd": [],
            "SecurityOpt": [
                "no-new-privileges:true", "seccomp={\"defaultAction\":\"SCMP_ACT_ERRNO\"}",
                "apparmor=docker-default",
            ],
            "ReadonlyRootfs": true,
            "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"},
            "Memory": 1 << 28, "MemorySwap": 1 << 28, "NanoCpus": 1_000_000_000, "PidsLimit": 128,
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "nofile", "Soft": 1024, "Hard": 1024},
            ],
            "OomKillDisable": false, "NetworkMode": "none", "IpcMode": "private",
            "ExtraHosts": ["a.example:192.31.196.2"],
            "CgroupnsMode": "private", "Init": true,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "AutoRemove": true,
            "LogConfig": {"Type": "none", "Config": {}}, "PublishAllPorts": false,
            "Mounts": [],
        },
    })
}

/// No container holds a network.
fn nobody(_: &str, _: &NamespaceHold) -> Option<String> {
    None
}

fn outcome(body: &Value, rules: &Rules) -> Result<Value, Refusal> {
    let checked = check(body.to_string().as_bytes(), NAMED, rules, nobody)?;
    Ok(serde_json::from_slice(&checked.body).expect("JSON"))
}

fn with(pointer: &str, value: Value) -> Value {
    let mut body = body();
    let (object, key) = pointer.rsplit_once('/').expect("a pointer");
    body.pointer_mut(object).expect("an object")[key] = value;
    body
}

#[test]
fn default_profile_is_accepted_and_labelled() {
    let taken = outcome(&body(), &rules()).expect("to be accepted");
    let mut expected = body();
    expected["Labels"][label::GUARD] = "test".into();
    expected["Labels"][label::CONTAINER] = NAMED.into();
    assert_eq!(taken, expected);
    let bare = with("/Labels/dev.portcullis.guard", json!(""));
    assert_eq!(outcome(&bare, &rules()), Ok(expected));
}

#[test]
fn looser_settings_are_refused() {
    let bind = |source: &str, more: Value| {
        let mut mount = json!({
            "Type": "bind", "Source": source, "Target": "/data", "ReadOnly": true,
            "BindOptions": {"Propagation": "rprivate", "NonRecursive": true},
        });
        for (key, value) in more.as_object().expect("an object") {
            mount[key] = value.clone();
        }
        json!([mount])
    };
    let unconfined = json!(["no-new-privileges:true", "seccomp=unconfined"]);
    let other = json!(["no-new-privileges:true", "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]);
    let beside = |more: &str| {
        json!(["no-new-privileges:true", "seccomp={\"defaultAction\":\"SCMP_ACT_ERRNO\"}", more])
    };
    assert!(
        outcome(&with("/HostConfig/SecurityOpt", beside("apparmor=docker-default")), &rules())
            .is_ok()
    );
    let twice = json!([
        "no-new-privileges:true",
        "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\",\"defaultAction\":\"SCMP_ACT_ERRNO\"}",
    ]);
    let weak = json!({"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777,uid=0"});
    for (pointer, value) in [
        ("/Image", json!("debian:latest")),
        ("/Image", json!("debian@sha256:00")),
        ("/Image", json!("")),
        ("/Image", json!("../x")),
        ("/Image", json!(format!("../containers/x@sha256:{}", "0".repeat(64)))),
        ("/Image", json!(format!("a//b@sha256:{}", "0".repeat(64)))),
        ("/Image", json!(format!("a/./b@sha256:{}", "0".repeat(64)))),
        ("/User", json!("0:0")),
        ("/User", json!("0:1")),
        ("/User", json!("1:0")),
        ("/User", json!("root")),
        ("/User", json!("")),
        ("/User", json!("+1:1")),
        ("/Tty", json!(true)),
        ("/OpenStdin", json!(false)),
        ("/StdinOnce", json!(false)),
        ("/StopSignal", json!("SIGSTOP")),
        ("/Env", json!(["A"])),
        ("/Env", json!(["=x"])),
        ("/Env", json!(["A=\0"])),
        ("/Volumes", json!({"/x": {}})),
        ("/ExposedPorts", json!({"1/tcp": {}})),
        ("/NetworkingConfig", json!({})),
        ("/Hostname", json!("x")),
        ("/Entrypoint", json!(["x"])),
        ("/Healthcheck/Test", json!(["CMD-SHELL", "x"])),
        ("/Healthcheck/Interval", json!(1_000_000)),
        ("/Healthcheck/Interval", json!(0)),
        ("/Healthcheck/Interval", Value::Null),
        ("/Healthcheck/Timeout", json!(0)),
        ("/Healthcheck/Retries", json!(0)),
        ("/Healthcheck/StartPeriod", json!(0)),
        ("/Healthcheck/StartPeriod", json!(3_600_000_000_000_u64)),
        ("/Healthcheck/StartInterval", json!(1_000_000)),
        ("/Labels/other", json!("x")),
        ("/Labels/dev.portcullis.guard", json!("other")),
        ("/Labels/dev.portcullis.container", json!(NAMED)),
        ("/Labels/dev.portcullis.owner", json!("")),
        ("/Labels/dev.portcullis.server", json!("another")),
        ("/HostConfig/Privileged", json!(true)),
        ("/HostConfig/CapDrop", json!([])),
        ("/HostConfig/CapAdd", json!(["CAP_SYS_ADMIN"])),
        ("/HostConfig/CapAdd", json!(["ALL"])),
        ("/HostConfig/SecurityOpt", json!([])),
        ("/HostConfig/SecurityOpt", json!(["no-new-privileges:true"])),
        ("/HostConfig/SecurityOpt", unconfined),
        ("/HostConfig/SecurityOpt", other),
        ("/HostConfig/SecurityOpt", twice),
        ("/HostConfig/SecurityOpt", beside("apparmor=unconfined")),
        ("/HostConfig/SecurityOpt", beside("systempaths=unconfined")),
        ("/HostConfig/SecurityOpt", beside("label=disable")),
        ("/HostConfig/SecurityOpt", beside("no-new-privileges:false")),
        ("/HostConfig/ReadonlyRootfs", json!(false)),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,exec,nosuid,nodev,size=64m"})),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,noexec,nosuid,nodev"})),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,noexec,nosuid,nodev,size=9g"})),
        ("/HostConfig/Tmpfs", json!({"/proc": "rw,noexec,nosuid,nodev,size=64m"})),
        ("/HostConfig/Tmpfs", json!({"/a/../sbin": "rw,noexec,nosuid,nodev,size=64m"})),
        ("/HostConfig/Tmpfs", weak),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,noexec,nosuid,nodev,exec,size=64m"})),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,exec,nosuid,nodev,noexec,size=64m"})),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,noexec=,nosuid,nodev,size=64m"})),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,noexec,nosuid,nodev,size=64m,size=65m"})),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,noexec,nosuid,nodev,noexec,size=64m"})),
        ("/HostConfig/Tmpfs", json!({"/tmp": "rw,noexec,nosuid,nodev,size=+64m"})),
        ("/HostConfig/Memory", json!(0)),
        ("/HostConfig/Memory", json!(-1)),
        ("/HostConfig/Memory", json!(1_u64 << 50)),
        ("/HostConfig/MemorySwap", json!(-1)),
        ("/HostConfig/NanoCpus", json!(0)),
        ("/HostConfig/PidsLimit", json!(0)),
        ("/HostConfig/PidsLimit", json!(-1)),
        ("/HostConfig/Ulimits", json!([{"Name": "memlock", "Soft": -1, "Hard": -1}])),
        ("/HostConfig/OomKillDisable", json!(true)),
        ("/HostConfig/NetworkMode", json!("bridge")),
        ("/HostConfig/NetworkMode", json!("host")),
        ("/HostConfig/NetworkMode", json!("container:x")),
        ("/HostConfig/NetworkMode", json!("")),
        ("/HostConfig/ExtraHosts", json!(["a:host-gateway"])),
        ("/HostConfig/ExtraHosts", json!(["a:169.254.169.254"])),
        ("/HostConfig/ExtraHosts", json!(["a:64:ff9b::192.31.196.2"])),
        ("/HostConfig/ExtraHosts", json!(["a\n1.2.3.4 b:192.31.196.2"])),
        ("/HostConfig/ExtraHosts", json!([":192.31.196.2"])),
        ("/HostConfig/ExtraHosts", json!(["a"])),
        ("/HostConfig/IpcMode", json!("host")),
        ("/HostConfig/PidMode", json!("host")),
        ("/HostConfig/UTSMode", json!("host")),
        ("/HostConfig/UsernsMode", json!("host")),
        ("/HostConfig/CgroupnsMode", json!("host")),
        ("/HostConfig/CgroupParent", json!("/")),
        ("/HostConfig/RestartPolicy/Name", json!("always")),
        ("/HostConfig/AutoRemove", json!(false)),
        ("/HostConfig/LogConfig/Type", json!("syslog")),
        ("/HostConfig/PublishAllPorts", json!(true)),
        ("/HostConfig/PortBindings", json!({})),
        ("/HostConfig/Binds", json!(["/:/host"])),
        ("/HostConfig/VolumesFrom", json!(["x"])),
        ("/HostConfig/VolumeDriver", json!("local")),
        ("/HostConfig/Devices", json!([])),
        ("/HostConfig/DeviceCgroupRules", json!(["a *:* rwm"])),
        ("/HostConfig/DeviceRequests", json!([])),
        ("/HostConfig/Sysctls", json!({"kernel.core_pattern": "|x"})),
        ("/HostConfig/MaskedPaths", json!([])),
        ("/HostConfig/ReadonlyPaths", json!([])),
        ("/HostConfig/GroupAdd", json!(["docker"])),
        ("/HostConfig/Runtime", json!("other")),
        ("/HostConfig/Annotations", json!({})),
        ("/HostConfig/StorageOpt", json!({})),
        ("/HostConfig/Links", json!(["x"])),
        ("/HostConfig/privileged", json!(true)),
        ("/HostConfig/PRIVILEGED", json!(true)),
        ("/HostConfig/binds", json!(["/:/host"])),
        ("/HostConfig/ſecurityOpt", json!([])),
        ("/hostconfig", json!({"Privileged": true})),
        ("/HostConfig/Mounts", bind("/", json!({}))),
        ("/HostConfig/Mounts", bind("/var/run/docker.sock", json!({}))),
        ("/HostConfig/Mounts", bind("/srv", json!({"Type": "volume"}))),
        ("/HostConfig/Mounts", bind("/srv", json!({"Type": "tmpfs"}))),
        ("/HostConfig/Mounts", bind("/srv", json!({"type": "volume"}))),
        ("/HostConfig/Mounts", bind("/srv", json!({"VolumeOptions": {"DriverConfig": {}}}))),
        (
            "/HostConfig/Mounts",
            bind("/srv", json!({"BindOptions": {"Propagation": "rshared", "NonRecursive": true}})),
        ),
        (
            "/HostConfig/Mounts",
            bind(
                "/srv",
                json!({"BindOptions": {
                    "Propagation": "rprivate", "NonRecursive": true, "CreateMountpoint": true,
                }}),
            ),
        ),
        ("/HostConfig/Mounts", bind("/srv", json!({"Target": "/proc"}))),
        ("/HostConfig/Mounts", bind("/srv", json!({"Target": "/a/../sbin"}))),
        ("/HostConfig/Mounts", bind("/srv", json!({"ReadOnly": false}))),
        ("/HostConfig/Mounts", bind("/srv/../etc", json!({}))),
        ("/HostConfig/Mounts", bind("/srv//x", json!({}))),
        ("/HostConfig/Mounts", bind("/srvx", json!({}))),
    ] {
        let mut rules = rules();
        rules.mounts = vec![MountRuleOf("/srv").into()];
        let refused = outcome(&with(pointer, value.clone()), &rules);
        assert!(refused.is_err(), "{pointer} {value}");
    }
    for missing in
        ["Memory", "PidsLimit", "NanoCpus", "SecurityOpt", "CapDrop", "NetworkMode", "AutoRemove"]
    {
        let mut body = body();
        body["HostConfig"].as_object_mut().expect("an object").remove(missing);
        assert!(outcome(&body, &rules()).is_err(), "{missing}");
    }
}

struct MountRuleOf(&'static str);

impl From<MountRuleOf> for crate::MountRule {
    fn from(of: MountRuleOf) -> Self {
        Self { path: of.0.into(), writable: false }
    }
}

#[test]
fn duplicate_keys_and_other_cases_are_refused() {
    let whole = body().to_string();
    for (from, to) in [
        ("\"Privileged\":false", "\"Privileged\":false,\"Privileged\":true"),
        ("\"Privileged\":false", "\"Privileged\":false,\"privileged\":true"),
        ("\"Privileged\":false", "\"Privileged\":false,\"\\u0050rivileged\":true"),
        ("\"Privileged\":false", "\"Privileged\":\"false\""),
        ("\"Init\":true", "\"Init\":true}},{"),
        ("\"User\":", "\"user\":\"0:0\",\"User\":"),
    ] {
        assert!(whole.contains(from), "{from}");
        let body = whole.replacen(from, to, 1);
        assert!(check(body.as_bytes(), NAMED, &rules(), nobody).is_err(), "{to}");
    }
    for body in [&b""[..], b"null", b"[]", b"{}", b"\xff", b"{\"Image\":1}"] {
        assert!(check(body, NAMED, &rules(), nobody).is_err());
    }
}

#[test]
fn allowed_deviations_are_accepted() {
    type Loosen = fn(&mut Rules);
    let cases: [(&str, Value, Loosen); 8] = [
        ("/Image", json!(format!("a.example/b@sha256:{}", "0".repeat(64))), |_| {}),
        ("/User", json!("0:0"), |rules| {
            rules.allow.insert(Allow::Root);
        }),
        ("/HostConfig/ReadonlyRootfs", json!(false), |rules| {
            rules.allow.insert(Allow::WritableRoot);
        }),
        (
            "/HostConfig/Tmpfs",
            json!({"/tmp": "rw,exec,nosuid,nodev,size=64m,mode=1777"}),
            |rules| {
                rules.allow.insert(Allow::ExecTmp);
            },
        ),
        ("/HostConfig/NetworkMode", json!("bridge"), |rules| {
            rules.allow.insert(Allow::Network);
        }),
        ("/HostConfig/CapAdd", json!(["CAP_NET_BIND_SERVICE"]), |rules| {
            rules.capabilities.insert("CAP_NET_BIND_SERVICE".to_owned());
        }),
        ("/HostConfig/Runtime", json!("runsc"), |rules| {
            rules.runtimes.insert("runsc".to_owned());
        }),
        ("/HostConfig/Memory", json!(1_u64 << 28), |_| {}),
    ];
    for (pointer, value, loosen) in cases {
        let mut rules = rules();
        loosen(&mut rules);
        let taken = outcome(&with(pointer, value), &rules);
        assert!(taken.is_ok(), "{pointer}: {taken:?}");
    }
}

/// Pause container for the server of [`body`].
fn holder() -> Value {
    let mut holder = body();
    holder["Labels"][label::HOLDS] = NAMED.into();
    let fields = holder.as_object_mut().expect("an object");
    fields.remove("Cmd");
    fields.insert("Env".to_owned(), json!([]));
    holder
}

#[test]
fn network_is_held_for_one_container_by_a_minimal_one() {
    let named = format!("{NAMED}-net");
    let held = |body: &Value, rules: &Rules| {
        let checked = check(body.to_string().as_bytes(), &named, rules, nobody)?;
        Ok::<_, Refusal>(checked.holds)
    };
    let of = ["m b n 1 2", "i", "notes"].map(str::to_owned);
    let holding = NamespaceHold { by: NAMED.to_owned(), of };
    assert_eq!(held(&holder(), &rules()), Ok(Some(holding.clone())));
    let mut rules = rules();
    rules.allow.extend([Allow::WritableRoot, Allow::Network]);
    rules.capabilities.insert("CAP_NET_ADMIN".to_owned());
    rules.mounts = vec![MountRuleOf("/srv").into()];
    let mount = json!([{
        "Type": "bind", "Source": "/srv", "Target": "/data", "ReadOnly": true,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": true},
    }]);
    for (pointer, value) in [
        ("/Cmd", json!(["a"])),
        ("/Env", json!(["A=1"])),
        ("/HostConfig/Mounts", mount),
        ("/HostConfig/CapAdd", json!(["CAP_NET_ADMIN"])),
        ("/HostConfig/ReadonlyRootfs", json!(false)),
        ("/HostConfig/NetworkMode", json!("bridge")),
        ("/HostConfig/NetworkMode", json!("container:h")),
        ("/Labels/dev.portcullis.holds", json!("")),
    ] {
        let (object, key) = pointer.rsplit_once('/').expect("a pointer");
        let mut holder = holder();
        holder.pointer_mut(object).expect("an object")[key] = value.clone();
        assert!(held(&holder, &rules).is_err(), "{pointer} {value}");
    }

    // The joining container names its owner, and gets the id of the pause container made for it.
    let joins = |body: &Value, name: &str| {
        let found = |container: &str, requested: &NamespaceHold| {
            (container == "h" && *requested == holding).then(|| "0123".to_owned())
        };
        check(body.to_string().as_bytes(), name, &rules, found)
    };
    let mut server = with("/HostConfig/NetworkMode", json!("container:h"));
    server["HostConfig"]["ExtraHosts"] = json!([]);
    let taken = joins(&server, NAMED).expect("to be accepted");
    let taken: Value = serde_json::from_slice(&taken.body).expect("JSON");
    assert_eq!(taken["HostConfig"]["NetworkMode"], "container:0123");
    assert!(joins(&server, "portcullis-notes-4567").is_err());
    for (pointer, value) in [
        ("/Labels/dev.portcullis.owner", json!("m b n 1 3")),
        ("/Labels/dev.portcullis.instance", json!("j")),
        ("/HostConfig/NetworkMode", json!("container:x")),
        ("/HostConfig/NetworkMode", json!("container:")),
        ("/HostConfig/NetworkMode", json!("container:h:x")),
        ("/HostConfig/ExtraHosts", json!(["a.example:192.31.196.2"])),
        ("/Labels/dev.portcullis.holds", json!(NAMED)),
    ] {
        let mut other = server.clone();
        let (object, key) = pointer.rsplit_once('/').expect("a pointer");
        other.pointer_mut(object).expect("an object")[key] = value.clone();
        assert!(joins(&other, NAMED).is_err(), "{pointer} {value}");
    }
}

#[test]
fn folders_with_links_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let top = std::fs::canonicalize(folder.path()).expect("a path");
    std::fs::create_dir(top.join("data")).expect("a folder");
    std::os::unix::fs::symlink("/etc", top.join("link")).expect("a link");
    std::os::unix::fs::symlink("/", top.join("data/up")).expect("a link");
    let mut rules = rules();
    rules.mounts = vec![crate::MountRule { path: top.clone(), writable: true }];
    assert_eq!(source(&top, true, &rules), Ok(()));
    assert_eq!(source(&top.join("data"), true, &rules), Ok(()));
    for path in ["link", "link/ssl", "data/up", "data/up/etc", "none", "data/", "data/."] {
        let refused = source(&top.join(path), false, &rules).expect_err(path);
        assert_eq!(refused.code, Code::Mount, "{path}");
    }
    rules.mounts.push(crate::MountRule { path: top.join("data"), writable: false });
    assert!(source(&top.join("data"), true, &rules).is_err());
    assert_eq!(source(&top.join("data"), false, &rules), Ok(()));
    // A rule's own path is trusted, but not below a folder that a container may write.
    std::fs::remove_dir_all(top.join("data")).expect("to be removed");
    std::os::unix::fs::symlink("/etc", top.join("data")).expect("a link");
    let refused = source(&top.join("data"), false, &rules).expect_err("a link");
    assert!(refused.why.contains("a link"), "{refused}");
    let mut alone = rules.clone();
    alone.mounts.remove(0);
    assert_eq!(source(&top.join("data"), false, &alone), Ok(()));
    let socket = std::os::unix::net::UnixListener::bind(top.join("socket")).expect("a socket");
    assert!(source(&top.join("socket"), false, &rules).is_err());
    drop(socket);
    std::fs::write(top.join("file"), "").expect("a file");
    assert_eq!(source(&top.join("file"), false, &rules), Ok(()));
    std::fs::remove_file(top.join("data")).expect("to be removed");
    std::fs::create_dir(top.join("data")).expect("a folder");
    // A folder that contains a read-only one is not writable either.
    assert!(source(&top, true, &rules).is_err());
    assert_eq!(source(&top, false, &rules), Ok(()));
}

#[test]
fn refusals_contain_no_values() {
    let secret = "hunter2".repeat(2);
    for (pointer, value) in [
        ("/Env", json!([secret])),
        ("/Env", json!(secret)),
        ("/Cmd", json!(secret)),
        ("/HostConfig", json!(secret)),
        ("/HostConfig/LogConfig", json!({"Type": "none", "Config": {"a": secret}})),
    ] {
        let refused = outcome(&with(pointer, value), &rules()).expect_err(pointer);
        assert!(!refused.to_string().contains(&secret), "{refused}");
    }
}
