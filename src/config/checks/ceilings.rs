//! Compares servers with the operator's ceilings.

use super::Checker;
use crate::{Ceilings, Loosening, finding::Code};
use portcullis_foundation::json_pointer::child;
use portcullis_upstream::config::Server;

const ALL: &str = "/limits/servers";

pub(super) fn check(checker: &mut Checker<'_>, at: &str, server: &Server, ceilings: &Ceilings) {
    let resources = &server.resources;
    let as_float = |number: usize| number as f64;
    let local = server.url.is_none();
    let numbers = [
        (
            local,
            "resources/memory-mib",
            resources.memory_mib as f64,
            ceilings.memory_mib.map(|n| n as f64),
        ),
        (local, "resources/cpus", resources.cpus, ceilings.cpus),
        (local, "resources/pids", resources.pids.into(), ceilings.pids.map(f64::from)),
        (local, "resources/tmp-mib", resources.tmp_mib as f64, ceilings.tmp_mib.map(|n| n as f64)),
        (local, "resources/files", resources.files.into(), ceilings.files.map(f64::from)),
        (true, "instances", as_float(server.instances), ceilings.instances.map(as_float)),
        (local, "warm", as_float(server.warm), ceilings.warm.map(as_float)),
        (local, "replicas", as_float(server.replicas), ceilings.replicas.map(as_float)),
    ];
    for (applies, key, number, ceiling) in numbers {
        if let (true, Some(ceiling)) = (applies, ceiling.filter(|ceiling| number > *ceiling)) {
            above(checker, at, key, number, ceiling);
        }
    }
    let Some(permitted) = &ceilings.deviations else { return };
    for (loosening, key) in Loosening::ALL {
        if asks_for(server, loosening) && !permitted.contains(&loosening) {
            let line = checker.line_of(&child(ALL, "deviations"));
            let message = format!(
                "`{key}` is not one of the deviations that a server may have (line {line})"
            );
            let pointer = format!("{at}/{}", key.replace('.', "/"));
            let finding = checker.document.at_key(&pointer, Code::AboveCeiling, message);
            checker.add(
                finding.help(format!("remove it, or add \"{key}\" to `limits.servers.deviations`")),
            );
        }
    }
}

fn above(checker: &mut Checker<'_>, at: &str, key: &str, number: f64, ceiling: f64) {
    let name = key.rsplit('/').next().unwrap_or(key);
    let line = checker.line_of(&child(ALL, name));
    let pointer = format!("{at}/{key}");
    let written = checker.document.get(&pointer).is_some();
    let default = if written { "" } else { " by default" };
    let message = format!(
        "`{name}` is {number}{default}, above the operator's ceiling for servers, {ceiling} (line {line})"
    );
    let place = if written { pointer } else { at.to_owned() };
    let finding = checker.document.at_key(&place, Code::AboveCeiling, message);
    let key = key.replace('/', ".");
    checker.add(finding.help(if written {
        format!("lower it, or raise `limits.servers.{name}`")
    } else {
        format!("write `{key} = {ceiling}` for this server, or raise `limits.servers.{name}`")
    }));
}

fn asks_for(server: &Server, loosening: Loosening) -> bool {
    let hardening = &server.hardening;
    match loosening {
        Loosening::Egress => !server.egress.is_empty(),
        Loosening::Mounts => !server.mounts.is_empty(),
        Loosening::Network => hardening.network,
        Loosening::WritableRoot => hardening.writable_root,
        Loosening::User => hardening.user.is_some(),
        Loosening::CapAdd => !hardening.cap_add.is_empty(),
        Loosening::ExecTmp => hardening.exec_tmp,
        Loosening::PodSocket => server.pod_socket.is_some(),
    }
}
