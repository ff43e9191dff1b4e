//! Compares manifests with Kubernetes's schemas and the Pod Security Standard "restricted".

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

use std::{fs, path::Path, process::Command};

use portcullis_kubernetes::{
    Claim, Cni, Container, Egress, EgressHost, LOADERS, Manifest, ManifestError, SERVER_USER,
    Secret, Workload, hosts, object_name, stream,
};
use serde_json::Value;

fn digest(of: char) -> String {
    format!("sha256:{}", of.to_string().repeat(64))
}

/// Server with default settings.
fn least() -> Workload {
    Workload {
        server: "notes".into(),
        namespace: "mcp".into(),
        portcullis: format!("registry.example/portcullis@{}", digest('a')),
        architecture: "amd64".into(),
        config: "state-dir = \"/var/lib/portcullis/state\"\n\n[servers.notes]\n".into(),
        policies: vec![("notes.cedar".into(), "permit (principal, action, resource);\n".into())],
        container: Some(Container {
            image: format!("registry.example/notes@{}", digest('b')),
            program: vec!["/usr/bin/node".into(), "server.js".into()],
            memory_mib: 512,
            cpus: 1.0,
            tmp_mib: 64,
            ..Container::default()
        }),
        storage: "10Gi".into(),
        ..Workload::default()
    }
}

/// Server with every setting.
fn most() -> Workload {
    let mut workload = least();
    workload.server = "git_hub".into();
    workload.architecture = "arm64".into();
    workload.lock = Some("version = 1\n".into());
    workload.storage_class = Some("encrypted".into());
    workload.secrets = vec![
        Secret { name: "GITHUB_TOKEN".into(), file: false },
        Secret { name: "APP_KEY".into(), file: true },
    ];
    workload.egress = vec![
        Egress { host: EgressHost::Name("api.github.com".into()), port: 443 },
        Egress { host: EgressHost::Below("githubusercontent.com".into()), port: 443 },
        Egress { host: EgressHost::Address("10.0.0.5".parse().unwrap()), port: 5432 },
        Egress { host: EgressHost::Address("2606:4700::1111".parse().unwrap()), port: 853 },
    ];
    workload.deviations = vec![
        "ReadonlyRootfs: false (hardening.writable-root), portcullis.toml:9".into(),
        "a line\n---\nkind: Secret".into(),
    ];
    let container = workload.container.as_mut().unwrap();
    container.user = Some((1000, 2000));
    container.cpus = 0.25;
    container.writable_root = true;
    container.capabilities = vec!["NET_BIND_SERVICE".into()];
    container.runtime_class = Some("gvisor".into());
    container.claims = vec![
        Claim { name: "data".into(), target: "/data".into(), writable: true },
        Claim { name: "books".into(), target: "/books".into(), writable: false },
    ];
    workload
}

/// Remote server.
fn remote() -> Workload {
    Workload {
        server: "search".into(),
        container: None,
        secrets: vec![Secret { name: "Authorization".into(), file: false }],
        egress: vec![Egress { host: EgressHost::Name("mcp.example.com".into()), port: 443 }],
        ..least()
    }
}

fn cilium() -> Workload {
    Workload { cni: Cni::Cilium, ..most() }
}

fn all() -> [(&'static str, Workload); 4] {
    [("least", least()), ("most", most()), ("remote", remote()), ("cilium", cilium())]
}

fn pod(workload: &Workload) -> Value {
    let manifests = workload.manifests().unwrap();
    let found = manifests.iter().find(|one| one.object["kind"] == "Deployment");
    found.unwrap().object["spec"]["template"]["spec"].clone()
}

#[test]
fn manifests_match_their_snapshots() {
    for (name, workload) in all() {
        let manifests = workload.manifests().unwrap();
        insta::assert_snapshot!(name, stream(&manifests));
    }
}

#[test]
fn manifests_match_the_schemas_of_kubernetes() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tests/kubernetes/bin");
    let validate = |version: &str, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("all.yaml");
        fs::write(&file, text).unwrap();
        let output = Command::new(python.join("kubernetes-validate"))
            .args(["--strict", "--kubernetes-version", version])
            .arg(&file)
            .output()
            .expect("tests/setup/kubernetes installs it");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // The oldest version with all used fields, and the newest known one.
    for version in ["1.29", "1.37"] {
        for (name, workload) in all() {
            let manifests = workload.manifests().unwrap();
            // Third-party kinds have no schema.
            let known: Vec<Manifest> = manifests
                .into_iter()
                .filter(|one| one.object["kind"] != "CiliumNetworkPolicy")
                .collect();
            assert!(known.len() >= 8, "{name}");
            let (taken, message) = validate(version, &stream(&known));
            assert!(taken, "{name}, {version}: {message}");
        }
    }
    let wrong = stream(&least().manifests().unwrap()).replace("readOnlyRootFilesystem", "readOnly");
    assert!(!validate("1.37", &wrong).0);
}

/// Violations of <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, each
/// control of "baseline" and "restricted", and of Portcullis's own rules.
fn breaches(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut hold = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    let absent = |value: &Value| value.is_null() || *value == false;
    for host in ["hostNetwork", "hostPID", "hostIPC"] {
        hold(absent(&spec[host]), host.into());
    }
    hold(spec["automountServiceAccountToken"] == false, "token".into());
    hold(spec["enableServiceLinks"] == false, "service links".into());
    let pod = &spec["securityContext"];
    hold(pod["sysctls"].is_null(), "sysctls".into());
    hold(pod["runAsNonRoot"] == true, "pod runAsNonRoot".into());
    hold(pod["seccompProfile"]["type"] == "RuntimeDefault", "pod seccomp".into());
    let kinds = ["configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"];
    for volume in spec["volumes"].as_array().unwrap() {
        let has = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        let has: Vec<&str> = has.map(String::as_str).collect();
        hold(has.len() == 1 && kinds.contains(&has[0]), format!("volume {volume}"));
        let sized = volume["emptyDir"].is_null() || volume["emptyDir"]["sizeLimit"].is_string();
        hold(sized, format!("size of {volume}"));
        let sources = volume["projected"]["sources"].as_array().cloned().unwrap_or_default();
        let plain = sources.iter().all(|source| source["serviceAccountToken"].is_null());
        hold(plain, format!("token in {volume}"));
    }
    let init = spec["initContainers"].as_array().cloned().unwrap_or_default();
    let containers = spec["containers"].as_array().unwrap();
    for container in init.iter().chain(containers) {
        let name = container["name"].as_str().unwrap();
        let security = &container["securityContext"];
        let mut hold = |holds: bool, what: &str| hold(holds, format!("{name}: {what}"));
        hold(absent(&security["privileged"]), "privileged");
        hold(security["allowPrivilegeEscalation"] == false, "escalation");
        hold(security["runAsNonRoot"] == true, "runAsNonRoot");
        for id in ["runAsUser", "runAsGroup"] {
            hold(security[id].as_u64().is_some_and(|id| id > 0), id);
        }
        hold(security["capabilities"]["drop"] == serde_json::json!(["ALL"]), "drop");
        let added = security["capabilities"]["add"].as_array().cloned().unwrap_or_default();
        hold(added.iter().all(|one| one == "NET_BIND_SERVICE"), "add");
        hold(security["seccompProfile"]["type"] == "RuntimeDefault", "seccomp");
        hold(security["procMount"].is_null(), "procMount");
        hold(security["seLinuxOptions"].is_null(), "SELinux");
        hold(container["resources"]["requests"] == container["resources"]["limits"], "requests");
        for what in ["cpu", "memory", "ephemeral-storage"] {
            hold(container["resources"]["limits"][what].is_string(), what);
        }
        let ports = container["ports"].as_array().cloned().unwrap_or_default();
        hold(ports.iter().all(|port| port["hostPort"].is_null()), "hostPort");
        hold(container["image"].as_str().unwrap().contains("@sha256:"), "digest");
        let env = container["env"].as_array().cloned().unwrap_or_default();
        let emptied =
            |one: &Value| one["value"] == "" && LOADERS.iter().any(|name| one["name"] == *name);
        let held = env.iter().all(|one| one["name"] == "PORTCULLIS_CONFIG" || emptied(one));
        hold(held, "environment");
        // Parts of the server's image must not affect how Portcullis's program is loaded.
        let all = name != "server"
            || LOADERS.iter().all(|name| env.iter().any(|one| one["name"] == *name));
        hold(all, "loader");
    }
    found
}

#[test]
fn every_pod_is_restricted() {
    for (name, workload) in all() {
        assert_eq!(breaches(&pod(&workload)), Vec::<String>::new(), "{name}");
        let manifests = workload.manifests().unwrap();
        let namespace = &manifests[0].object;
        assert_eq!(namespace["kind"], "Namespace");
        let enforced = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
        assert_eq!(enforced, "restricted");
        assert!(manifests.iter().all(|one| one.object["kind"] != "Secret"), "{name}");
    }
    // The table finds violations.
    for (pointer, value) in [
        ("/hostPID", true.into()),
        ("/automountServiceAccountToken", true.into()),
        ("/containers/1/securityContext/runAsUser", 0.into()),
        ("/containers/1/securityContext/seccompProfile/type", "Unconfined".into()),
        ("/initContainers/0/securityContext/allowPrivilegeEscalation", true.into()),
        ("/containers/0/securityContext/capabilities/drop", Value::Array(Vec::new())),
        ("/containers/0/image", "portcullis:latest".into()),
        ("/containers/1/resources/limits/memory", "9Gi".into()),
        ("/volumes/2", serde_json::json!({ "name": "x", "hostPath": { "path": "/" } })),
    ] {
        let mut spec = pod(&least());
        *spec.pointer_mut(pointer).unwrap() = value;
        assert!(!breaches(&spec).is_empty(), "{pointer}");
    }
}

#[test]
fn config_changes_only_the_writable_root() {
    let server = |workload: &Workload| pod(workload)["containers"][1]["securityContext"].clone();
    assert_eq!(server(&least())["readOnlyRootFilesystem"], true);
    assert_eq!(server(&least())["runAsUser"], SERVER_USER.0);
    assert_eq!(server(&most())["readOnlyRootFilesystem"], false);
    assert_eq!(server(&most())["runAsGroup"], 2000);
    assert_eq!(pod(&most())["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
}

#[test]
fn server_container_mounts_nothing_of_the_proxy() {
    for workload in [least(), most()] {
        let spec = pod(&workload);
        let mounts = spec["containers"][1]["volumeMounts"].as_array().unwrap();
        let names = mounts.iter().map(|mount| mount["name"].as_str().unwrap().to_owned());
        for name in names {
            let hidden = ["config", "state", "secrets", "proxy-tmp"].contains(&&*name);
            assert!(!hidden, "{name}");
        }
        let tools = mounts.iter().find(|mount| mount["name"] == "tools").unwrap();
        assert_eq!(tools["readOnly"], true);
    }
    // It gets as files exactly the secrets that are delivered as files.
    let volumes = pod(&most())["volumes"].clone();
    let of = |name: &str| {
        let found = volumes.as_array().unwrap().iter().find(|volume| volume["name"] == name);
        found.unwrap()["secret"]["items"].as_array().unwrap().len()
    };
    assert_eq!((of("secrets"), of("server-secrets")), (2, 1));
}

#[test]
fn impossible_workloads_are_refused() {
    let changed = |change: &dyn Fn(&mut Workload)| {
        let mut workload = most();
        change(&mut workload);
        workload.manifests().unwrap_err()
    };
    let container = |change: fn(&mut Container)| {
        changed(&|workload| change(workload.container.as_mut().unwrap()))
    };
    let storage = |text: &str| changed(&|workload| workload.storage = text.into());
    assert_eq!(
        changed(&|one| one.namespace = "Mcp".into()),
        ManifestError::Namespace("Mcp".into())
    );
    assert_eq!(changed(&|one| one.namespace = "a-".into()), ManifestError::Namespace("a-".into()));
    assert_eq!(changed(&|one| one.server = "s".repeat(51)), ManifestError::Server);
    assert_eq!(changed(&|one| one.policies[0].0 = "a/b".into()), ManifestError::Key("a/b".into()));
    assert_eq!(
        changed(&|one| one.secrets[0].name = "a b".into()),
        ManifestError::Key("a b".into())
    );
    assert_eq!(
        changed(&|one| one.policies.push(one.policies[0].clone())),
        ManifestError::Twice("notes.cedar".into())
    );
    assert_eq!(changed(&|one| one.config = "x".repeat(1_000_001)), ManifestError::Large(1_000_001));
    for text in ["", "Gi", "10", "10GB", "1.5Gi", "-1Gi"] {
        assert_eq!(storage(text), ManifestError::Quantity(text.into()));
    }
    assert_eq!(
        container(|of| of.capabilities.push("SYS_ADMIN".into())),
        ManifestError::Capability("SYS_ADMIN".into())
    );
    assert_eq!(container(|of| of.user = Some((0, 1))), ManifestError::Root(0, 1));
    assert_eq!(container(|of| of.user = Some((1, 0))), ManifestError::Root(1, 0));
}

#[test]
fn comments_stay_comments() {
    for (name, workload) in all() {
        for manifest in workload.manifests().unwrap() {
            let read: Value = serde_yaml_ng::from_str(&manifest.yaml()).unwrap();
            assert_eq!(read, manifest.object, "{name}, {}", manifest.file);
        }
    }
}

#[test]
fn clients_use_the_names_of_the_service() {
    assert_eq!(
        hosts("git-hub", "mcp"),
        [
            "mcp-git-hub:8811",
            "mcp-git-hub.mcp:8811",
            "mcp-git-hub.mcp.svc:8811",
            "mcp-git-hub.mcp.svc.cluster.local:8811"
        ]
    );
}

#[test]
fn object_names_of_servers_are_distinct() {
    let names = ["a-b", "a_b", "A-b", "-a-b", "a-b-", "a.b"].map(object_name);
    let different: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(different.len(), names.len(), "{names:?}");
}
