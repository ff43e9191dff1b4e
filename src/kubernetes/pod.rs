//! Manifest of the pod.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{CONFIG, Container, Manifest, PORT, SECRETS, SOCKET, Workload, secret_name};

/// User and group of the proxy, as in its image. The group is also that of volumes.
pub const PROXY_USER: (u32, u32) = (65532, 65532);
/// Default user and group of a server.
pub const SERVER_USER: (u32, u32) = (65534, 65534);

/// Path of the proxy's executable in the server's container.
const TOOLS: &str = "/portcullis";
/// Variables by which an image could make glibc's loader run its code before Portcullis's program
/// confines anything. They are set to empty.
pub const LOADERS: [&str; 3] = ["LD_AUDIT", "LD_PRELOAD", "GLIBC_TUNABLES"];
/// Folder of the secrets that servers get as files.
const SERVER_SECRETS: &str = "/run/secrets";

pub(super) fn manifest(workload: &Workload) -> Manifest {
    let name = workload.name();
    let mut comment = vec![
        "One pod, because two cannot write one audit log. Requests equal limits, so it is not \
        evicted"
            .to_owned(),
        "first. The kubelet limits the number of processes (podPidsLimit).".into(),
    ];
    if workload.container.is_some() {
        comment.push(
            "A volume cannot be mounted noexec: the server can execute files that it writes to \
            /tmp."
                .into(),
        );
    }
    if !workload.deviations.is_empty() {
        comment.push("Your config deviates from the hardened profile:".into());
        comment.extend(workload.deviations.iter().map(|line| format!("    {line}")));
    }
    let mut template = json!({
        "metadata": {
            "labels": workload.labels(),
            // The proxy reloads policies by itself, but not its config.
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
        // Names are resolved as written, not below the cluster's domains first.
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

/// Security context of every container of the pod.
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

/// Requests equal to limits.
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

/// Init container that copies the proxy's executable to where the server's container finds it.
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
        // Connecting does not need write access.
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
    // Kubernetes accepts no fraction of a thousandth.
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
