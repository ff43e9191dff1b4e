//! `portcullis server export k8s`: exports a server with its own proxy as Kubernetes manifests.

mod config;
mod workload;

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::ValueEnum;
use portcullis_kubernetes::{Cni, stream};
use serde_json::json;

use crate::cli::{Context, Exit};
use crate::manage::servers::configured;
use portcullis_foundation::atomic_file;
use portcullis_protocol::names::ServerName;

#[derive(Debug, clap::Subcommand)]
pub enum Export {
    /// Write Kubernetes manifests: a pod with a proxy for only this server, and its resources
    K8s(K8s),
}

#[derive(Debug, clap::Args)]
pub struct K8s {
    /// The server's name in the config
    server: ServerName,
    /// The Portcullis image by digest, as built by `examples/deploy/build`
    #[arg(long, value_name = "NAME@sha256:…")]
    portcullis_image: String,
    /// The namespace of all objects
    #[arg(long, value_name = "NAME", default_value = "mcp")]
    namespace: String,
    /// Write the files and a `kustomization.yaml` to this folder. Default: standard output
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// The network plugin that enforces network policies
    #[arg(long, value_enum, default_value = "any")]
    cni: Network,
    /// Replace a folder of `mounts` with a volume claim, by its target: `/data=notes-data`; repeatable
    #[arg(long = "claim", value_name = "TARGET=CLAIM")]
    claims: Vec<String>,
    /// The cluster's runtime class, such as `gvisor`
    #[arg(long, value_name = "NAME")]
    runtime_class: Option<String>,
    /// Size of the volume for audit store and state
    #[arg(long, value_name = "QUANTITY", default_value = "10Gi")]
    storage: String,
    /// Storage class of that volume. Default: the cluster's
    #[arg(long, value_name = "NAME")]
    storage_class: Option<String>,
    /// Architecture of the nodes, such as `amd64`
    #[arg(long, value_name = "NAME", default_value = "amd64", value_parser = ["amd64", "arm64"])]
    architecture: String,
    /// Leave out a key of the config: `audit.export`, or an interceptor, `interceptors.NAME`; repeatable
    #[arg(long = "leave-out", value_name = "KEY")]
    leave_out: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Network {
    /// Any plugin that supports NetworkPolicy
    Any,
    /// Cilium, which can match hosts by name
    Cilium,
}

impl From<Network> for Cni {
    fn from(network: Network) -> Self {
        match network {
            Network::Any => Self::Any,
            Network::Cilium => Self::Cilium,
        }
    }
}

/// Runs the verb.
pub(super) async fn run(export: Export, ctx: &Context) -> anyhow::Result<Exit> {
    let Export::K8s(args) = export;
    let loaded = ctx.load()?;
    configured(&loaded, &args.server)?;
    let workload = workload::of(ctx, &loaded, &args).await?;
    let manifests = workload.manifests()?;
    let Some(folder) = &args.output else {
        ctx.verbatim(&stream(&manifests))?;
        return Ok(Exit::Ok);
    };
    let failed = || format!("cannot write into {}", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    for manifest in &manifests {
        atomic_file::write_as(
            &folder.join(manifest.file),
            manifest.yaml().as_bytes(),
            atomic_file::PUBLIC,
        )
        .with_context(failed)?;
    }
    let files: Vec<_> = manifests.iter().map(|manifest| manifest.file).collect();
    let all = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": files,
    });
    let text = serde_yaml_ng::to_string(&all)?;
    atomic_file::write_as(&folder.join("kustomization.yaml"), text.as_bytes(), atomic_file::PUBLIC)
        .with_context(failed)?;
    if ctx.is_json() {
        ctx.json(&json!({ "folder": folder, "files": files }))?;
    } else {
        ctx.note(format_args!("{} files are in {}", files.len() + 1, folder.display()));
    }
    Ok(Exit::Ok)
}
