//! Objects that the pod needs: namespace, service account, settings, volume.

use serde_json::{Map, Value, json};

use crate::{Manifest, Workload, secret_name};

pub(super) fn manifests(workload: &Workload) -> Vec<Manifest> {
    let mut all = vec![namespace(workload), account(workload)];
    all.extend(configs(workload));
    all.push(storage(workload));
    all
}

fn namespace(workload: &Workload) -> Manifest {
    let mut labels = Map::new();
    for mode in ["enforce", "audit", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), "restricted".into());
        labels.insert(format!("pod-security.kubernetes.io/{mode}-version"), "latest".into());
    }
    Manifest {
        file: "namespace.yaml",
        comment: vec!["The cluster refuses pods here that do not satisfy the standard.".into()],
        object: json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": workload.namespace, "labels": labels },
        }),
    }
}

fn account(workload: &Workload) -> Manifest {
    let mut comment = vec!["A separate account, without rights and without a token.".to_owned()];
    if !workload.secrets.is_empty() {
        let name = secret_name(&workload.server);
        comment.push("Create the secrets with these keys before the pod:".into());
        comment.push(format!(
            "    kubectl --namespace {} create secret generic {name} \\",
            workload.namespace
        ));
        let last = workload.secrets.len() - 1;
        for (at, secret) in workload.secrets.iter().enumerate() {
            let more = if at == last { "" } else { " \\" };
            comment.push(format!("        --from-file={}=FILE{more}", secret.name));
        }
    }
    Manifest {
        file: "service-account.yaml",
        comment,
        object: json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": workload.metadata(&workload.name()),
            "automountServiceAccountToken": false,
        }),
    }
}

fn configs(workload: &Workload) -> [Manifest; 2] {
    let name = workload.name();
    let mut config = json!({ "portcullis.toml": workload.config });
    if let Some(lock) = &workload.lock {
        config["portcullis.lock"] = lock.as_str().into();
    }
    let policies: Map<String, Value> =
        workload.policies.iter().map(|(file, text)| (file.clone(), text.as_str().into())).collect();
    [
        Manifest {
            file: "config.yaml",
            comment: vec!["The proxy's config, derived from yours: only this server.".into()],
            object: json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": workload.metadata(&format!("{name}-config")),
                "data": config,
            }),
        },
        Manifest {
            file: "policies.yaml",
            comment: vec![
                "Your policies, unchanged. When they change here, the proxy reloads them.".into(),
            ],
            object: json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": workload.metadata(&format!("{name}-policies")),
                "data": policies,
            }),
        },
    ]
}

fn storage(workload: &Workload) -> Manifest {
    let mut spec = json!({
        "accessModes": ["ReadWriteOncePod"],
        "resources": { "requests": { "storage": workload.storage } },
    });
    if let Some(class) = &workload.storage_class {
        spec["storageClassName"] = class.as_str().into();
    }
    Manifest {
        file: "storage.yaml",
        comment: vec![
            "The audit store, the clients' keys (hashed) and the seal's keys. One pod uses it at a"
                .into(),
            "time; if the class does not support ReadWriteOncePod, write ReadWriteOnce.".into(),
        ],
        object: json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": workload.metadata(&workload.name()),
            "spec": spec,
        }),
    }
}
