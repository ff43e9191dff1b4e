//! Translates the operator's settings into the launcher's plan. Everything is resolved and checked
//! here, in the proxy, before any process starts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    mounts::Rules,
    program::{self, Search},
    protocol::{Bind, Plan},
};
use crate::{
    egress_netns,
    mount::Mount,
    process::{LaunchFailure, LaunchSpec, SECRETS},
};

/// The host's folders of programs and libraries, as far as they exist.
pub(super) const SYSTEM: &[&str] =
    &["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"];

/// Files of the host's /etc for linking programs, checking certificates and the time zone.
const ETC: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "os-release",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
];

/// Default user and group of a server.
const NOBODY: u32 = 65534;

impl Plan {
    /// Plan that starts a server. `ourselves` is the running executable.
    pub(super) fn new(spec: &LaunchSpec, ourselves: &Path) -> Result<Self, LaunchFailure> {
        let Some((word, arguments)) = spec.command.split_first() else {
            return Err(refused("`command` is missing", "write `command = [\"PROGRAM\", …]`"));
        };
        if !spec.hardening.cap_add.is_empty() {
            return Err(refused(
                "`cap-add` does not work in the sandbox, which has no capabilities",
                "run the server from an image, or remove `cap-add`",
            ));
        }
        if spec.hardening.network && !spec.egress.is_empty() {
            return Err(refused(
                "it shares the proxy's network, where `egress` cannot be enforced",
                "remove `hardening.network`",
            ));
        }
        let mut plan = Self::skeleton(&spec.hardening)?;
        plan.egress_sockets = egress_netns::listen_addresses(&spec.egress);
        let names = egress_netns::hosts(&spec.egress);
        if let Some((_, hosts)) = plan.files.iter_mut().find(|(at, _)| at.ends_with("hosts")) {
            hosts.extend(names.into_iter().map(|(name, address)| format!("{address} {name}\n")));
        }
        let rules = Rules::of(&spec.mount_policy);
        for mount in &spec.mounts {
            let Mount { source, target, writable } = rules.check(mount)?;
            if plan.binds.iter().any(|bind| bind.target == target) {
                return Err(refused(
                    &format!("two mounts have the same target, `{}`", target.display()),
                    "give each mount its own target",
                ));
            }
            plan.binds.push(Bind { source, target, writable, recursive: false });
        }
        let mut environment: BTreeMap<String, String> = spec.env.iter().cloned().collect();
        let secrets = spec.secrets.iter();
        environment.extend(secrets.map(|(name, value)| (name.clone(), value.expose().to_owned())));
        let variables =
            egress_netns::environment(&spec.egress, |name| environment.contains_key(name));
        environment.extend(variables);
        let own_path = environment.get("PATH").cloned();
        let mut search = Search::new(std::mem::take(&mut plan.binds), own_path.as_deref(), rules);
        // Links of the root count as folders too while the program is searched.
        let links = plan.links.iter().map(|(link_path, _)| Bind::read_only(link_path, link_path));
        let links: Vec<_> = links.collect();
        search.binds.extend(links.iter().cloned());
        let program = search.find(word, ourselves)?;
        plan.binds = search.binds.into_iter().filter(|bind| !links.contains(bind)).collect();
        plan.binds.extend(spec.secret_files.iter().map(|folder| Bind::read_only(folder, SECRETS)));
        plan.binds.sort_by_key(|bind| bind.target.components().count());
        plan.arguments = std::iter::once(program.display().to_string())
            .chain(arguments.iter().cloned())
            .collect();
        plan.program = Some(program);
        let folders: Vec<_> = search.path.iter().map(|path| path.display().to_string()).collect();
        let path = folders.iter().map(String::as_str).chain([program::PATH]).collect::<Vec<_>>();
        environment.entry("PATH".into()).or_insert_with(|| path.join(":"));
        let home = spec.home(|name| environment.contains_key(name));
        environment.extend(home.into_iter().map(|(name, value)| (name.into(), value.into())));
        let illegal = |name: &&String| name.is_empty() || name.contains(['=', '\0']);
        if let Some(name) = environment.keys().find(illegal) {
            return Err(refused(
                &format!("`{}` is not a name of an environment variable", name.escape_debug()),
                "use letters, digits and `_`",
            ));
        }
        plan.environment = environment.into_iter().collect();
        plan.hostname = spec.server.as_str().to_owned();
        plan.memory = spec.resources.memory_mib.saturating_mul(1 << 20);
        plan.pids = spec.resources.pids;
        plan.tmp = spec.resources.tmp_mib.saturating_mul(1 << 20);
        plan.open_files = spec.resources.files.into();
        plan.cpus = spec.resources.cpus.ceil().clamp(1.0, 4096.0) as usize;
        Ok(plan)
    }

    /// Plan for the container with a server's program: the rest is in that container.
    pub(super) fn for_pod(spec: &LaunchSpec) -> Self {
        let mut environment: BTreeMap<String, String> = spec.env.iter().cloned().collect();
        let secrets = spec.secrets.iter();
        environment.extend(secrets.map(|(name, value)| (name.clone(), value.expose().to_owned())));
        let home = spec.home(|name| environment.contains_key(name));
        environment.extend(home.into_iter().map(|(name, value)| (name.into(), value.into())));
        let mut plan = Self::empty();
        plan.arguments = spec.command.clone();
        plan.environment = environment.into_iter().collect();
        plan.open_files = spec.resources.files.into();
        plan
    }

    /// Plan without a program and without limits.
    pub(super) fn empty() -> Self {
        Self {
            hostname: String::new(),
            program: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            binds: Vec::new(),
            links: Vec::new(),
            files: Vec::new(),
            network: true,
            writable_root: false,
            exec_tmp: false,
            user: (NOBODY, NOBODY),
            // The pod limits the container, which all instances share; the kernel counts processes
            // by user, and other pods of the node have the same user.
            memory: u64::MAX,
            memory_is_held: false,
            pids: u32::MAX,
            cpus: usize::MAX,
            tmp: 0,
            groups: Vec::new(),
            egress_sockets: Vec::new(),
            open_files: 1024,
        }
    }

    /// Sandbox without a program, to test whether one can be set up.
    pub(super) fn trial() -> Result<Self, LaunchFailure> {
        Self::skeleton(&crate::config::Hardening::default())
    }

    fn skeleton(hardening: &crate::config::Hardening) -> Result<Self, LaunchFailure> {
        let user = user(hardening.user.as_deref())?;
        let (binds, links) = system();
        Ok(Self {
            hostname: "sandbox".into(),
            program: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            binds,
            links,
            files: files(user, hardening.network),
            network: hardening.network,
            egress_sockets: Vec::new(),
            writable_root: hardening.writable_root,
            exec_tmp: hardening.exec_tmp,
            user,
            memory: 64 << 20,
            memory_is_held: false,
            pids: 8,
            cpus: 1,
            tmp: 1 << 20,
            open_files: 64,
            groups: Vec::new(),
        })
    }
}

/// The host's programs, libraries and general settings: folders to bind, and links to recreate.
fn system() -> (Vec<Bind>, Vec<(PathBuf, PathBuf)>) {
    let mut binds = Vec::new();
    let mut links = Vec::new();
    for tree in SYSTEM.iter().map(Path::new) {
        if let Ok(link) = fs::read_link(tree) {
            links.push((tree.to_owned(), link));
        } else if tree.is_dir() && fs::canonicalize(tree).is_ok_and(|canonical| canonical == tree) {
            // Parts of a system may be separate mounts: libraries of a graphics card, a disk.
            binds.push(Bind { recursive: true, ..Bind::read_only(tree, tree) });
        }
    }
    for name in ETC {
        let link_path = Path::new("/etc").join(name);
        if let Ok(source) = fs::canonicalize(&link_path) {
            binds.push(Bind { recursive: true, ..Bind::read_only(source, link_path) });
        }
    }
    (binds, links)
}

/// Files of /etc for users and names. With network access, the host's own name resolution.
fn files((uid, gid): (u32, u32), network: bool) -> Vec<(PathBuf, String)> {
    let host = |name: &str, otherwise: &str| match network {
        true => fs::read_to_string(format!("/etc/{name}")).unwrap_or_else(|_| otherwise.into()),
        false => otherwise.into(),
    };
    let hosts = "127.0.0.1 localhost\n::1 localhost\n";
    [
        (
            "passwd",
            format!(
                "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n\
                 server:x:{uid}:{gid}:server:/tmp:/usr/sbin/nologin\n"
            ),
        ),
        ("group", format!("root:x:0:\nserver:x:{gid}:\n")),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".into()),
        ("hosts", host("hosts", hosts)),
        ("resolv.conf", host("resolv.conf", "")),
    ]
    .map(|(name, text)| (Path::new("/etc").join(name), text))
    .into()
}

pub(super) fn user(wanted: Option<&str>) -> Result<(u32, u32), LaunchFailure> {
    let Some(wanted) = wanted else { return Ok((NOBODY, NOBODY)) };
    let ids =
        wanted.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    match ids {
        Some((uid, gid)) if uid != 0 && gid != 0 && uid != u32::MAX && gid != u32::MAX => {
            Ok((uid, gid))
        }
        _ => Err(refused(
            &format!("`{}` is not a user and a group for a sandbox", wanted.escape_debug()),
            "write `user = \"UID:GID\"` in numbers, neither of them 0",
        )),
    }
}

fn refused(what: &str, remedy: &str) -> LaunchFailure {
    LaunchFailure { what: what.into(), remedy: Some(remedy.into()) }
}
