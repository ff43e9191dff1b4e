//! Workload of the manifests: the server of the config, or why it cannot run in a pod.

use std::path::Path;

use portcullis_kubernetes::{Claim, Container, Egress, EgressHost, Secret, Workload};

use super::{K8s, config as pod_config};
use crate::{
    cli::{Context, config_errors::ConfigErrors},
    manage::servers::{configured, launch_secrets, launcher, signatures},
};
use portcullis_catalog::lock::{Lock, ResolvedImage, ServerPin};
use portcullis_config::Loaded;
use portcullis_egress::{Destination, Host, Pattern};
use portcullis_oci::{Platform, Program};
use portcullis_policy::{Part, Start};
use portcullis_runtime::container::{Image, Profile};
use portcullis_upstream::{
    Launcher,
    config::{Runtime, SecretDeliveryMethod, Server},
    images::{self, Pinned},
};

/// Workload of a server.
///
/// # Errors
/// All reasons why it cannot run in a pod, with the positions in the config.
pub(super) async fn of(ctx: &Context, loaded: &Loaded, args: &K8s) -> anyhow::Result<Workload> {
    let name = &args.server;
    let settings = configured(loaded, name)?;
    anyhow::ensure!(
        matches!(args.portcullis_image.parse(), Ok(Image::Digest(_))),
        "`{}` does not name an image by its digest: write `--portcullis-image NAME@sha256:…`",
        args.portcullis_image
    );
    let at = format!("/servers/{name}");
    let mut errors = ConfigErrors::of(loaded);
    for (key, pointer) in pod_config::refused(loaded, &args.leave_out) {
        errors.add(
            &pointer,
            format!("a pod has no place for `{key}`: say `--leave-out {key}` to do without"),
        );
    }
    // Many users may read a `ConfigMap`.
    errors.literals(name, settings);
    let claims = shape(&mut errors, &at, settings, args);
    errors.end()?;

    let mut workload = Workload {
        server: name.to_string(),
        namespace: args.namespace.clone(),
        portcullis: args.portcullis_image.clone(),
        architecture: args.architecture.clone(),
        policies: policies(loaded)?,
        secrets: secrets(settings),
        egress: egress(settings),
        cni: args.cni.into(),
        storage: args.storage.clone(),
        storage_class: args.storage_class.clone(),
        ..Workload::default()
    };
    let mut arguments = settings.command.clone();
    let mut launcher = launcher(loaded).await;
    let pinned = match &settings.image {
        Some(image) => Some(pinned(loaded, &launcher, args, image)?),
        None => None,
    };
    if let Some(pinned) = &pinned {
        if !loaded.config.signers.is_empty() {
            launcher.signatures = signatures(loaded)?;
            let _progress = ctx.progress("asking who signed the image");
            launcher.signed(name, settings, pinned).await?;
        }
        let image = {
            let _progress = ctx.progress("asking what the image's program is");
            program(&launcher, pinned, &args.architecture).await?
        };
        let program = entry(image, &mut arguments).ok_or_else(|| {
            anyhow::anyhow!(
                "the image {} says of no program, and neither does `command`",
                pinned.image()
            )
        })?;
        workload.lock = lock(loaded, args, pinned)?;
        workload.container = Some(container(settings, args, (pinned.image(), program), claims));
    }
    if let Err(unfit) = workload.manifests() {
        let pointer = match &unfit {
            portcullis_kubernetes::ManifestError::Capability(_) => {
                format!("{at}/hardening/cap-add")
            }
            portcullis_kubernetes::ManifestError::Root(..)
            | portcullis_kubernetes::ManifestError::Proxy(_) => {
                format!("{at}/hardening/user")
            }
            portcullis_kubernetes::ManifestError::Key(_) => format!("{at}/headers"),
            _ => return Err(unfit.into()),
        };
        let mut errors = ConfigErrors::of(loaded);
        errors.add(&pointer, &unfit);
        errors.end()?;
    }
    let arguments = arguments.as_deref();
    let text =
        pod_config::of(loaded, name, settings, (arguments, &args.namespace), &args.leave_out)?;
    let pod = portcullis_config::parse(Path::new("portcullis.toml"), &text).map_err(|found| {
        anyhow::Error::from(found).context("the pod's config would not be taken")
    })?;
    let in_pod = configured(&pod, name)?;
    if settings.image.is_some() {
        workload.deviations = deviations(loaded, &launcher, args, settings, in_pod)?;
    }
    may_start(loaded, &launcher, args, in_pod, pinned.as_ref())?;
    workload.config = text;
    Ok(workload)
}

/// Checks that a pod can run this config. Returns the claims that replace its mounts.
fn shape(errors: &mut ConfigErrors<'_>, at: &str, settings: &Server, args: &K8s) -> Vec<Claim> {
    if settings.url.is_none() && settings.image.is_none() {
        let what = "a program of this machine is not on a cluster's nodes: name an `image`";
        errors.add(&format!("{at}/command"), what);
    }
    if settings.hardening.network {
        let what = "a pod gets no way to everywhere: list the hosts in `egress`";
        errors.add(&format!("{at}/hardening/network"), what);
    }
    if let Some(binding) = settings.secret_bindings().find(|binding| !binding.by_client.is_empty())
    {
        let what = "all instances of a pod are in one container, so no client has a secret of its own: \
                    export a pod for each";
        errors.add(&format!("{at}/{}/{}/by-client", binding.table(), binding.name), what);
    } else if settings.sharing.keeps_apart() {
        let what = "all instances of a pod are in one container, so clients are not kept apart: \
                    write `sharing = \"shared\"`, or export a pod for each";
        errors.add(&format!("{at}/sharing"), what);
    }
    if settings.runtime == Runtime::Runsc && args.runtime_class.is_none() {
        let what = "gVisor is a runtime class of your cluster: name it, `--runtime-class gvisor`";
        errors.add(&format!("{at}/runtime"), what);
    }
    let mut claims = Vec::new();
    let given: Vec<(&str, &str)> =
        args.claims.iter().filter_map(|claim| claim.split_once('=')).collect();
    for (nth, mount) in settings.mounts.iter().enumerate() {
        let target = mount.target.to_string_lossy();
        match given.iter().find(|(of, claim)| *of == target && !claim.is_empty()) {
            Some((_, claim)) => claims.push(Claim {
                name: (*claim).to_owned(),
                target: target.into_owned(),
                writable: mount.writable,
            }),
            None => errors.add(
                &format!("{at}/mounts/{nth}"),
                format!(
                    "{} is a folder of this machine: name a volume's claim in its place, \
                     `--claim {target}=NAME`",
                    mount.source.display()
                ),
            ),
        }
    }
    for claim in &args.claims {
        let target = claim.split_once('=').map_or("", |(target, _)| target);
        if !settings.mounts.iter().any(|mount| mount.target == Path::new(target)) {
            let what = format!("`--claim {claim}` is for none of `mounts`: write TARGET=CLAIM");
            errors.add(&format!("{at}/mounts"), what);
        }
    }
    claims
}

fn policies(loaded: &Loaded) -> anyhow::Result<Vec<(String, String)>> {
    let texts = portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir)
        .texts(&loaded.base)
        .map_err(|found| anyhow::anyhow!("{found}"))?;
    let named = texts.into_iter().map(|(path, text)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, text)
    });
    Ok(named.collect())
}

fn secrets(settings: &Server) -> Vec<Secret> {
    let secrets = settings.secrets.iter().map(|(name, secret)| Secret {
        name: name.clone(),
        file: secret.delivery == SecretDeliveryMethod::File,
    });
    let headers = settings.headers.keys().map(|name| Secret { name: name.clone(), file: false });
    secrets.chain(headers).collect()
}

fn egress(settings: &Server) -> Vec<Egress> {
    let host = |host: &Host| match host {
        Host::Name(name) => EgressHost::Name(name.to_string()),
        Host::Address(address) => EgressHost::Address(*address),
    };
    let listed = settings.egress.iter().map(|to: &Destination| Egress {
        host: match (&to.address, &to.host) {
            (Some(address), _) => EgressHost::Address(*address),
            (None, Pattern::One(one)) => host(one),
            (None, Pattern::Below(top)) => EgressHost::Below(top.to_string()),
        },
        port: to.port,
    });
    let url = settings.url.as_deref().and_then(|url| url::Url::parse(url).ok());
    let remote = url.and_then(|url| {
        let port = url.port_or_known_default()?;
        let host = match url.host()? {
            url::Host::Domain(name) => EgressHost::Name(name.to_owned()),
            url::Host::Ipv4(address) => EgressHost::Address(address.into()),
            url::Host::Ipv6(address) => EgressHost::Address(address.into()),
        };
        Some(Egress { host, port })
    });
    listed.chain(remote).collect()
}

/// Content of the image, from the config or the lock file: a pod that resolves it again could get
/// another.
fn pinned(loaded: &Loaded, launcher: &Launcher, args: &K8s, image: &str) -> anyhow::Result<Pinned> {
    let name = &args.server;
    let pinned = match images::fixed(image)? {
        Some(fixed) => fixed,
        None => {
            let meaning = Lock::read(&launcher.base)?.meaning(name.as_str(), image);
            let Some(meaning) = meaning else {
                let line = loaded.line(&format!("/servers/{name}/image"));
                let line = line.map_or_else(String::new, |line| format!(":{line}"));
                anyhow::bail!(
                    "{}{line}: what `{image}` means is not locked: `portcullis server lock {name}`",
                    loaded.path.display()
                );
            };
            images::pinned(image, meaning, false)?
        }
    };
    anyhow::ensure!(
        matches!(pinned.meaning, ResolvedImage::Digest(_)),
        "`{image}` is an image of this machine, which no cluster can pull: push it to a registry, and \
         name it there"
    );
    Ok(pinned)
}

/// Program of the image, from the engine if it has the image, else from the registry.
async fn program(
    launcher: &Launcher,
    pinned: &Pinned,
    architecture: &str,
) -> anyhow::Result<Program> {
    let platform = Platform::linux(architecture);
    if let Ok(engine) = launcher.engine.now()
        && engine.platform() == platform
        && let Some(program) = engine.program(&pinned.image()).await?
    {
        return Ok(program);
    }
    let Some(reference) = &pinned.reference else {
        anyhow::bail!("the image {} is of no registry", pinned.image());
    };
    Ok(launcher.images.client()?.image(reference, &platform).await?.program)
}

/// Program that always runs, with an engine's semantics: `command` replaces the image's own
/// arguments. The remaining arguments are left in `arguments`.
fn entry(image: Program, arguments: &mut Option<Vec<String>>) -> Option<Vec<String>> {
    let Program { mut entrypoint, arguments: own } = image;
    match arguments {
        None => entrypoint.extend(own),
        Some(args) if entrypoint.is_empty() && !args.is_empty() => {
            entrypoint.push(args.remove(0));
        }
        Some(_) => {}
    }
    (!entrypoint.is_empty()).then_some(entrypoint)
}

fn container(
    settings: &Server,
    args: &K8s,
    (image, program): (String, Vec<String>),
    claims: Vec<Claim>,
) -> Container {
    let Server { resources, hardening, replicas, .. } = settings;
    let user = hardening.user.as_deref().and_then(|user| user.split_once(':'));
    let user = user.and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    let number = u64::try_from(*replicas).unwrap_or(u64::MAX);
    let plain = |name: &String| name.strip_prefix("CAP_").unwrap_or(name).to_owned();
    Container {
        image,
        program,
        user,
        // All replicas run in this container.
        memory_mib: resources.memory_mib.saturating_mul(number),
        cpus: resources.cpus * *replicas as f64,
        tmp_mib: resources.tmp_mib.saturating_mul(number),
        writable_root: hardening.writable_root,
        capabilities: hardening.cap_add.iter().map(plain).collect(),
        claims,
        runtime_class: args.runtime_class.clone(),
    }
}

/// Lock file of the pod, if the config has a tag: policies know the image by that name.
fn lock(loaded: &Loaded, args: &K8s, pinned: &Pinned) -> anyhow::Result<Option<String>> {
    if images::fixed(&pinned.name)?.is_some() {
        return Ok(None);
    }
    let mut lock = Lock::read(&loaded.base)?;
    lock.catalogs.clear();
    lock.servers.retain(|name, _| name == args.server.as_str());
    for locked in lock.servers.values_mut() {
        let ServerPin { image, image_digest, .. } = std::mem::take(locked);
        *locked = ServerPin { image, image_digest, ..ServerPin::default() };
    }
    Ok(Some(toml::to_string(&lock)?))
}

/// Deviations in the config, each with its position.
fn deviations(
    loaded: &Loaded,
    launcher: &Launcher,
    args: &K8s,
    settings: &Server,
    in_pod: &Server,
) -> anyhow::Result<Vec<String>> {
    let name = &args.server;
    let profile = Profile::of(&launcher.spec_without_secrets(name, in_pod))?;
    let place = |key: &str| {
        let line = loaded.written(&format!("/servers/{name}/{}", key.replace('.', "/")));
        let line = line.map_or_else(String::new, |line| format!(":{line}"));
        format!("{}{line}", loaded.path.file_name().unwrap_or_default().to_string_lossy())
    };
    let found = profile.deviations();
    let all = found.iter().map(|found| format!("{found}, {}", place(found.config_key)));
    let mounts = settings.mounts.iter().enumerate().map(|(nth, mount)| {
        let how = if mount.writable { "rw" } else { "ro" };
        format!(
            "Mounts: {} {how} (mounts), {}",
            mount.target.display(),
            place(&format!("mounts.{nth}"))
        )
    });
    Ok(all.chain(mounts).collect())
}

/// Evaluates the policies as the pod's proxy will.
fn may_start(
    loaded: &Loaded,
    launcher: &Launcher,
    args: &K8s,
    in_pod: &Server,
    pinned: Option<&Pinned>,
) -> anyhow::Result<()> {
    let engine = portcullis_policy::Engine::open(
        portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir),
        &loaded.base,
    )
    .map_err(|found| anyhow::anyhow!("{found}"))?;
    // The pod does not verify who signed the image: this happens here.
    let program = launcher.program_of(&args.server, in_pod, pinned)?;
    let program = program.for_policies(&launcher.placement(in_pod));
    let start = Start {
        server: &args.server,
        program: &program,
        url: in_pod.url.as_deref(),
        secrets: launch_secrets(in_pod),
    };
    let parts = engine.decide_start(&start);
    let Some(Part { action, target, outcome }) =
        parts.into_iter().find(|part| !part.outcome.permits_alone())
    else {
        return Ok(());
    };
    let remedy = match in_pod.pod_socket {
        Some(_) => format!(
            "; there it has the deviations [{}], and no known signer",
            program.deviations.join(", ")
        ),
        None => String::new(),
    };
    anyhow::bail!(
        "policies would not let `{}` be started in the pod: `{}` of {target}: {}{remedy}",
        args.server,
        action.as_str(),
        outcome.explain_alone()
    )
}
