//! The pod.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{CONFIG, Container, Manifest, PORT, SECRETS, SOCKET, Workload, secret_name};

/// User and group of the proxy, as its image has them. The group is that of volumes, too.
pub const PROXY_USER: (u32, u32) = (65532, 65532);
/// User and group of a server that the config gives no other.
pub const SERVER_USER: (u32, u32) = (65534, 65534);

/// Where the server's container finds the proxy's executable.
const TOOLS: &str = "/portcullis";
/// Variables by which an image could have glibc's loader run code of its own, before our program is
/// there to confine any: emptied for it.
pub const LOADERS: [&str; 3] = ["LD_AUDIT", "LD_PRELOAD", "GLIBC_TUNABLES"];
/// Where servers find secrets that they get as files.
const SERVER_SECRETS: &str = "/run/secrets";

pub(super) fn manifest(workload: &Workload) -> Manifest {
    let name = workload.name();
    let mut comment = vec![
        "One pod: two could not write one audit log. Requests are limits, so that it is not the first"
            .to_owned(),
        "to be evicted. How many processes a pod may have is the kubelet's to say (podPidsLimit).".into(),
    ];
    if workload.container.is_some() {
        comment.push(
            "A volume can't be mounted noexec: what the server writes to /tmp it can execute."
                .into(),
        );
    }
    if !workload.deviations.is_empty() {
        comment.push("Your config loosens the hardened profile:".into());
        comment.extend(workload.deviations.iter().map(|line| format!("    {line}")));
    }
    let mut template = json!({
        "metadata": {
            "labels": workload.labels(),
            // The proxy reads policies anew by itself, but not its config.
            "annotations": { "portcullis.dev/config": digest(workload) },
        },
        "spec": spec(workload),
    });
    if let Some(class) = workload.container.as_ref().and_then(|of| of.runtime_class.as_ref()) {
        template["spec"]["runtimeClassName"] = class.as_str().into();
    }
    Manifest {
        file: "deployment.yaml",
        comment,
        object: json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": workload.metadata(&name),
            "spec": {
                "replicas": 1,
                "strategy": { "type": "Recreate" },
                "revisionHistoryLimit": 3,
                "selector": { "matchLabels": workload.selector() },
                "template": template,
            },
        }),
    }
}

fn digest(workload: &Workload) -> String {
    let lock = workload.lock.as_deref().unwrap_or_default();
    hex::encode(&Sha256::digest(format!("{}\0{lock}", workload.config))[..16])
}

fn spec(workload: &Workload) -> Value {
    let (user, group) = PROXY_USER;
    let mut containers = vec![proxy(workload)];
    let mut spec = json!({
        "serviceAccountName": workload.name(),
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "hostNetwork": false,
        "hostPID": false,
        "hostIPC": false,
        "shareProcessNamespace": false,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 60,
        "nodeSelector": {
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": workload.architecture,
        },
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": user,
            "runAsGroup": group,
            "fsGroup": group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    if !workload.egress.is_empty() {
        // Names are asked for as they stand, and not below the cluster's domains first.
        spec["dnsConfig"] = json!({ "options": [{ "name": "ndots", "value": "1" }] });
    }
    if let Some(container) = &workload.container {
        spec["initContainers"] = json!([installer(workload)]);
        containers.push(server(workload, container));
    }
    spec["containers"] = containers.into();
    spec["volumes"] = volumes(workload);
    spec
}

/// What every container of the pod keeps to.
fn confined((user, group): (u32, u32)) -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": user,
        "runAsGroup": group,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// Requests that are limits.
fn resources(memory_mib: u64, millicpus: u64, disk_mib: u64) -> Value {
    let all = json!({
        "cpu": format!("{millicpus}m"),
        "memory": format!("{memory_mib}Mi"),
        "ephemeral-storage": format!("{disk_mib}Mi"),
    });
    json!({ "requests": all, "limits": all })
}

fn mount(name: &str, path: &str, read_only: bool) -> Value {
    json!({ "name": name, "mountPath": path, "readOnly": read_only })
}

/// Copies the proxy's executable to where the server's container finds it.
fn installer(workload: &Workload) -> Value {
    json!({
        "name": "install",
        "image": workload.portcullis,
        "imagePullPolicy": "IfNotPresent",
        "args": ["pod-exec", "install", TOOLS],
        "securityContext": confined(PROXY_USER),
        "resources": resources(256, 500, 1024),
        "volumeMounts": [mount("tools", TOOLS, false)],
    })
}

fn proxy(workload: &Workload) -> Value {
    let mut mounts = vec![
        mount("config", "/etc/portcullis", true),
        mount("state", "/var/lib/portcullis", false),
        mount("proxy-tmp", "/tmp", false),
    ];
    if !workload.secrets.is_empty() {
        mounts.push(mount("secrets", SECRETS, true));
    }
    if workload.container.is_some() {
        // To connect, nothing has to be written.
        mounts.push(mount("socket", "/run/portcullis", true));
    }
    let ask = |path: &str, every: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": "http" },
            "periodSeconds": every,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        })
    };
    json!({
        "name": "portcullis",
        "image": workload.portcullis,
        "imagePullPolicy": "IfNotPresent",
        "args": ["run"],
        "env": [{ "name": "PORTCULLIS_CONFIG", "value": CONFIG }],
        "ports": [{ "name": "http", "containerPort": PORT, "protocol": "TCP" }],
        "securityContext": confined(PROXY_USER),
        "resources": resources(1024, 1000, 1024),
        "startupProbe": ask("/readyz", 2, 60),
        "readinessProbe": ask("/readyz", 5, 3),
        "livenessProbe": ask("/healthz", 20, 3),
        "volumeMounts": mounts,
    })
}

fn server(workload: &Workload, of: &Container) -> Value {
    let mut mounts = vec![
        mount("tools", TOOLS, true),
        mount("socket", "/run/portcullis", false),
        mount("server-tmp", "/tmp", false),
    ];
    if workload.secrets.iter().any(|secret| secret.file) {
        mounts.push(mount("server-secrets", SERVER_SECRETS, true));
    }
    for (at, claim) in of.claims.iter().enumerate() {
        mounts.push(mount(&format!("claim-{at}"), &claim.target, !claim.writable));
    }
    let mut security = confined(of.user.unwrap_or(SERVER_USER));
    security["readOnlyRootFilesystem"] = (!of.writable_root).into();
    if !of.capabilities.is_empty() {
        security["capabilities"]["add"] = json!(of.capabilities);
    }
    // The image may have another loader and other libraries, or none.
    let (loader, libraries) = (format!("{TOOLS}/ld.so"), format!("{TOOLS}/lib"));
    let ourselves = format!("{TOOLS}/portcullis");
    let serve = [&*loader, "--inhibit-cache", "--library-path", &libraries, &ourselves];
    let serve = serve.into_iter().chain(["pod-exec", "serve", SOCKET, "--"]);
    let command: Vec<&str> = serve.chain(of.program.iter().map(String::as_str)).collect();
    // A fraction of a thousandth is none to Kubernetes.
    let millicpus = (of.cpus * 1000.0).ceil().max(1.0) as u64;
    json!({
        "name": "server",
        "image": of.image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "env": LOADERS.map(|name| json!({ "name": name, "value": "" })),
        "securityContext": security,
        "resources": resources(of.memory_mib, millicpus, 256),
        "volumeMounts": mounts,
    })
}

fn volumes(workload: &Workload) -> Value {
    let name = workload.name();
    let memory = |name: &str, mib: u64| json!({ "name": name, "emptyDir": { "medium": "Memory", "sizeLimit": format!("{mib}Mi") } });
    let policies: Vec<Value> = workload
        .policies
        .iter()
        .map(|(file, _)| json!({ "key": file, "path": format!("{}/{file}", crate::POLICIES) }))
        .collect();
    let files =
        ["portcullis.toml"].into_iter().chain(workload.lock.as_ref().map(|_| "portcullis.lock"));
    let files: Vec<Value> = files.map(|file| json!({ "key": file, "path": file })).collect();
    let mut all = vec![
        json!({
            "name": "config",
            "projected": {
                "defaultMode": 0o440,
                "sources": [
                    { "configMap": {
                        "name": format!("{name}-config"),
                        "items": files,
                    } },
                    { "configMap": { "name": format!("{name}-policies"), "items": policies } },
                ],
            },
        }),
        json!({ "name": "state", "persistentVolumeClaim": { "claimName": name } }),
        memory("proxy-tmp", 64),
    ];
    let items = |of: &dyn Fn(&crate::Secret) -> bool| -> Vec<Value> {
        let named = workload.secrets.iter().filter(|secret| of(secret));
        named.map(|secret| json!({ "key": secret.name, "path": secret.name })).collect()
    };
    let secrets = |volume: &str, items: Vec<Value>| {
        json!({
            "name": volume,
            "secret": {
                "secretName": secret_name(&workload.server),
                "defaultMode": 0o440,
                "items": items,
            },
        })
    };
    if !workload.secrets.is_empty() {
        all.push(secrets("secrets", items(&|_| true)));
    }
    let Some(container) = &workload.container else { return all.into() };
    all.push(json!({ "name": "tools", "emptyDir": { "sizeLimit": "1Gi" } }));
    all.push(memory("socket", 1));
    all.push(memory("server-tmp", container.tmp_mib));
    let files = items(&|secret| secret.file);
    if !files.is_empty() {
        all.push(secrets("server-secrets", files));
    }
    for (at, claim) in container.claims.iter().enumerate() {
        all.push(json!({
            "name": format!("claim-{at}"),
            "persistentVolumeClaim": { "claimName": claim.name, "readOnly": !claim.writable },
        }));
    }
    all.into()
}
