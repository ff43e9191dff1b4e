//! Profile of a server in words.

use super::{Permission, ServerFacts, line};
use portcullis_config::Loaded;
use portcullis_protocol::names::ServerName;
use portcullis_runtime::{
    egress_netns::has_address,
    sandbox::{self, Outside},
};
use portcullis_upstream::{
    Placement,
    config::{Runtime, Server},
};

/// Permissions by the config, each with its line; the permissions of every server come first.
pub(super) fn may(
    loaded: &Loaded,
    name: &ServerName,
    settings: &Server,
    found: &ServerFacts,
) -> Vec<Permission> {
    let mut all = Vec::new();
    let mut add = |key: &str, what: String| {
        all.push(Permission { what, config_key: key.to_owned(), line: line(loaded, name, key) });
    };
    if let Placement::Remote { url } = &found.placement {
        add("url", format!("do anything: it runs elsewhere, and the proxy reaches it at {url}"));
        return all;
    }
    let resources = &settings.resources;
    add("resources.memory-mib", format!("use {} MiB of memory", resources.memory_mib));
    add("resources.cpus", format!("use {} of the machine's processors", resources.cpus));
    add("resources.pids", format!("have {} processes and threads", resources.pids));
    add("resources.files", format!("have {} files open in a process", resources.files));
    let exec = if settings.hardening.exec_tmp { ", and execute programs there" } else { "" };
    let key = if exec.is_empty() { "resources.tmp-mib" } else { "hardening.exec-tmp" };
    add(key, format!("write {} MiB to /tmp, which is gone when it ends{exec}", resources.tmp_mib));
    for (index, mount) in settings.mounts.iter().enumerate() {
        let how = if mount.writable { "read and change" } else { "read" };
        // The sandbox mounts writable paths `noexec`; a container's engine cannot.
        let sandboxed = matches!(found.placement, Placement::Sandbox { .. });
        let exec = match mount.writable && (!sandboxed || settings.hardening.exec_tmp) {
            true => ", and execute programs there",
            false => "",
        };
        let (source, target) = (mount.source.display(), mount.target.display());
        add(&format!("mounts.{index}"), format!("{how} {source}, which it sees as {target}{exec}"));
    }
    for (index, to) in settings.egress.iter().enumerate() {
        let by = match has_address(&settings.egress, to) {
            true => "",
            false => {
                " by the proxy that `HTTPS_PROXY` names (a program that ignores `HTTPS_PROXY` can't resolve the host)"
            }
        };
        let what = format!("reach {to}{by}, where policies permit it (`egress`), on record");
        add(&format!("egress.{index}"), what);
    }
    if let Some(socket) = &settings.pod_socket {
        let what =
            format!("run in the container that listens at {}, as its pod says", socket.display());
        add("pod-socket", what);
    }
    let hardening = &settings.hardening;
    if hardening.network {
        let of = match found.placement {
            Placement::Sandbox { .. } => "the machine's own network",
            _ => "the engine's network",
        };
        let what = format!("reach whatever {of} reaches, undecided and off the record");
        add("hardening.network", what);
    }
    if hardening.writable_root {
        add("hardening.writable-root", "change its own root, until it ends".to_owned());
    }
    let outside = match found.placement {
        Placement::Sandbox { .. } => sandbox::outside(hardening.user.as_deref()),
        _ => Outside::Same,
    };
    match (outside, &hardening.user) {
        (Outside::Same, Some(user)) => {
            add("hardening.user", format!("act as the user {user} on what is mounted"));
        }
        (outside @ Outside::Ourselves { .. }, _) if !settings.mounts.is_empty() => {
            let what = format!("act on mounted files as the user that runs the proxy: {outside}");
            add("mounts", what);
        }
        _ => {}
    }
    if !hardening.cap_add.is_empty() {
        let held = hardening.cap_add.join(", ");
        add("hardening.cap-add", format!("use the capabilities {held}"));
    }
    all
}

/// Actions that the config does not permit.
pub(super) fn may_not(settings: &Server, placement: &Placement) -> Vec<String> {
    if let Placement::Remote { .. } = placement {
        let what = "lead the proxy elsewhere: redirects to other hosts are not followed";
        return vec![what.to_owned()];
    }
    let hardening = &settings.hardening;
    let sandbox = matches!(placement, Placement::Sandbox { .. });
    let mut all = Vec::new();
    let mut add = |what: &str| all.push(what.to_owned());
    add(match (hardening.network, settings.egress.is_empty()) {
        (true, _) => "take connections from outside",
        (false, true) => "reach any network: there is nothing but its own loopback, and no DNS",
        (false, false) => "reach anything else: its network has no way out but ours, and no DNS",
    });
    add(match (sandbox, settings.mounts.is_empty()) {
        (false, true) => "see any file of this machine: it has those of its image",
        (false, false) => "see any other file of this machine: it has those of its image",
        (true, true) => "see files of this machine but its programs, libraries and certificates",
        (true, false) => {
            "see any other file of this machine but its programs, libraries and certificates"
        }
    });
    if !hardening.writable_root {
        add("write anywhere else");
    }
    if hardening.cap_add.is_empty() {
        add("hold a capability, or gain privileges by any program (no new privileges)");
    } else {
        add("hold another capability, or gain privileges by any program (no new privileges)");
    }
    add("see or signal a process that is not its own, or use devices");
    add(match settings.runtime {
        Runtime::Runsc => "speak to the machine's kernel: gVisor's is between",
        _ => {
            "trace processes, mount, load code into the kernel, or use namespaces, keys, BPF or io_uring: it has a list of system calls"
        }
    });
    if settings.runtime != Runtime::Runsc && settings.mounts.iter().any(|mount| mount.writable) {
        add("leave a set-user-ID or set-group-ID file, or one with capabilities, in a mount");
    }
    add("leave core dumps");
    add(match sandbox {
        true => "outlive the proxy",
        false => {
            "stay behind a killed proxy for longer than until one starts again, or 20 s behind `portcullis guard`"
        }
    });
    all
}
