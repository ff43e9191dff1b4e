//! Network access to and from the pod.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};

use crate::{Cni, Egress, EgressHost, Manifest, PORT, Workload};

/// Labels of clients: pods with the second one in namespaces with the first one.
const CLIENTS: &str = "portcullis.dev/clients";
const CLIENT: &str = "portcullis.dev/client";

/// IPv4 addresses that are not public, as in Portcullis's egress proxy.
const NOT_PUBLIC: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// The same for the allocated part of IPv6. NAT64 is not in it: a cluster with NAT64 needs its own
/// rule.
const PUBLIC_V6: &str = "2000::/3";
const NOT_PUBLIC_V6: [&str; 4] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"];

pub(super) fn manifests(workload: &Workload) -> Vec<Manifest> {
    let mut all = vec![service(workload), policy(workload)];
    if workload.cni == Cni::Cilium && !workload.egress.is_empty() {
        all.push(by_names(workload));
    }
    all
}

fn service(workload: &Workload) -> Manifest {
    let url = format!("http://{}.{}:{PORT}/mcp", workload.name(), workload.namespace);
    Manifest {
        file: "service.yaml",
        comment: vec![
            format!("Clients with a key reach it at {url}. It does not use TLS:"),
            "a proxy in front of it, or the cluster's network, must encrypt.".into(),
        ],
        object: json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": workload.metadata(&workload.name()),
            "spec": {
                "type": "ClusterIP",
                "selector": workload.selector(),
                "ports": [{ "name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP" }],
            },
        }),
    }
}

fn policy(workload: &Workload) -> Manifest {
    let mut comment = vec![
        "Only pods with this label reach the pod:".to_owned(),
        format!("    {CLIENT}: \"true\""),
        "in namespaces with this label:".into(),
        format!("    {CLIENTS}: \"true\""),
        "(and the node, for its probes). The cluster's network plugin (CNI) must enforce network"
            .into(),
        "policies; otherwise this object has no effect.".into(),
    ];
    let egress = match workload.cni {
        _ if workload.egress.is_empty() => {
            comment.push("It reaches nothing, not even DNS.".into());
            Vec::new()
        }
        Cni::Cilium => {
            comment.push("Its destinations are in cilium-network-policy.yaml.".into());
            Vec::new()
        }
        Cni::Any => {
            comment.extend(known_by_address(workload));
            rules(&workload.egress)
        }
    };
    let clients = json!({
        "namespaceSelector": { "matchLabels": { CLIENTS: "true" } },
        "podSelector": { "matchLabels": { CLIENT: "true" } },
    });
    Manifest {
        file: "network-policy.yaml",
        comment,
        object: json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": workload.metadata(&workload.name()),
            "spec": {
                "podSelector": { "matchLabels": workload.selector() },
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{
                    "from": [clients],
                    "ports": [{ "protocol": "TCP", "port": "http" }],
                }],
                "egress": egress,
            },
        }),
    }
}

fn shown(egress: &Egress) -> String {
    let port = egress.port;
    match &egress.host {
        EgressHost::Name(name) => format!("{name}:{port}"),
        EgressHost::Below(name) => format!("*.{name}:{port}"),
        EgressHost::Address(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        EgressHost::Address(IpAddr::V4(address)) => format!("{address}:{port}"),
    }
}

/// Parts of the config that a network policy cannot express.
fn known_by_address(workload: &Workload) -> Vec<String> {
    let listed: Vec<String> = workload.egress.iter().map(shown).collect();
    let mut comment = vec![format!("Your config allows it to reach {}.", listed.join(", "))];
    if workload.egress.iter().any(is_named) {
        comment.push(
            "A NetworkPolicy has no names: it permits ANY public address at these ports, and the"
                .into(),
        );
        comment.push(
            "cluster's DNS. With Cilium, export with `--cni cilium`, which permits only the names."
                .into(),
        );
    }
    comment
}

fn is_named(egress: &Egress) -> bool {
    !matches!(egress.host, EgressHost::Address(_))
}

fn tcp(port: u16) -> Value {
    json!({ "protocol": "TCP", "port": port })
}

fn cidr(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("{address}/32"),
        IpAddr::V6(_) => format!("{address}/128"),
    }
}

fn rules(egress: &[Egress]) -> Vec<Value> {
    let mut rules = Vec::new();
    let ports: BTreeSet<u16> = egress.iter().filter(|to| is_named(to)).map(|to| to.port).collect();
    if !ports.is_empty() {
        rules.push(json!({
            "to": [{
                "namespaceSelector": {
                    "matchLabels": { "kubernetes.io/metadata.name": "kube-system" },
                },
                "podSelector": { "matchLabels": { "k8s-app": "kube-dns" } },
            }],
            "ports": [{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }],
        }));
        rules.push(json!({
            "to": [
                { "ipBlock": { "cidr": "0.0.0.0/0", "except": NOT_PUBLIC } },
                { "ipBlock": { "cidr": PUBLIC_V6, "except": NOT_PUBLIC_V6 } },
            ],
            "ports": ports.into_iter().map(tcp).collect::<Vec<_>>(),
        }));
    }
    for Egress { host, port } in egress {
        if let EgressHost::Address(address) = host {
            rules.push(json!({
                "to": [{ "ipBlock": { "cidr": cidr(*address) } }],
                "ports": [tcp(*port)],
            }));
        }
    }
    rules
}

/// Policy for Cilium, which learns the addresses of names from DNS answers to pods.
fn by_names(workload: &Workload) -> Manifest {
    let selector = |host: &EgressHost| match host {
        EgressHost::Name(name) => json!({ "matchName": name }),
        EgressHost::Below(name) => json!({ "matchPattern": format!("*.{name}") }),
        EgressHost::Address(_) => Value::Null,
    };
    let named: Vec<&Egress> = workload.egress.iter().filter(|to| is_named(to)).collect();
    let port = |port: u16| json!([{ "ports": [{ "port": port.to_string(), "protocol": "TCP" }] }]);
    let mut egress = Vec::new();
    if !named.is_empty() {
        let names: Vec<Value> = named.iter().map(|to| selector(&to.host)).collect();
        egress.push(json!({
            "toEndpoints": [{ "matchLabels": {
                "k8s:io.kubernetes.pod.namespace": "kube-system",
                "k8s:k8s-app": "kube-dns",
            } }],
            "toPorts": [{
                "ports": [{ "port": "53", "protocol": "ANY" }],
                "rules": { "dns": names },
            }],
        }));
    }
    for to in &workload.egress {
        egress.push(match &to.host {
            EgressHost::Address(address) => {
                json!({ "toCIDR": [cidr(*address)], "toPorts": port(to.port) })
            }
            host => json!({ "toFQDNs": [selector(host)], "toPorts": port(to.port) }),
        });
    }
    Manifest {
        file: "cilium-network-policy.yaml",
        comment: vec![
            "Only these names can be resolved, and only their addresses can be reached.".into(),
            "In Cilium, `*` matches one label: add names further below.".into(),
        ],
        object: json!({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": workload.metadata(&workload.name()),
            "spec": {
                "endpointSelector": { "matchLabels": workload.selector() },
                "egress": egress,
            },
        }),
    }
}
