//! Checks of the audit log and its readers.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path};

use nix::sys::statvfs::statvfs;
use serde_json::Value;

use super::{Check, shown};
use portcullis_audit::{Keys, config::OnFailure};
use portcullis_config::{Config, Loaded};
use portcullis_protocol::identity::Member;

/// Minimum free bytes; less is a finding.
const LITTLE: u64 = 1 << 30;

/// Checks the folder of the store, its settings, and the admin roles.
pub(super) fn checks(loaded: &Loaded) -> Vec<Check> {
    let config = &loaded.config;
    let mut checks = vec![store(config)];
    if config.audit.on_failure == OnFailure::Pass {
        checks.push(Check::warn(
            "audit",
            "`on-failure = \"pass\"`: calls go on without a record where the log takes none",
            "remove it if every call must be on record",
        ));
    }
    if config.audit.witness.is_empty() {
        checks.push(Check::warn(
            "audit",
            "no witness keeps checkpoints: a log that was replaced together with the state folder, \
             or a copy without its newest checkpoints, looks right to `audit verify`",
            "add an `[[audit.witness]]` on another machine: docs/operate/audit-proof.md",
        ));
    }
    if let Some(encryption) = &config.audit.encryption {
        checks.push(match Keys::fetch(encryption) {
            Ok(_) => Check::ok("audit key", "records are encrypted at rest"),
            Err((pointer, trouble)) => {
                let key = pointer.trim_start_matches('/').replace('/', ".");
                let detail = format!("`{key}`: {trouble}");
                Check::fail("audit key", detail, "the proxy does not start without it")
            }
        });
    }
    let unknown = config.admin.roles.members().filter(|(_, _, member)| member.id().is_none());
    checks.extend(unknown.map(|(role, _, member)| nobody(&role.to_string(), member)));
    checks
}

/// Checks from the status of a running proxy: calls that continue without a record, and records
/// without a signature.
pub(super) fn running(status: &Value) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(missing) = status["audit"]["missing"].as_object() {
        let since = missing.get("since").and_then(Value::as_str).unwrap_or("some time");
        let detail = format!("calls continue without a record since {since}: the log accepts none");
        let remedy = "the proxy's own log says why: a full, slow or broken disk";
        checks.push(Check::fail("audit", detail, remedy));
    }
    if let Some(why) = status["audit"]["unsigned"].as_str() {
        let detail = format!("no checkpoint is signed: {why}");
        checks.push(Check::fail("audit", detail, "run `portcullis audit verify`"));
    }
    checks
}

fn nobody(role: &str, member: &Member) -> Check {
    let detail = format!("`{member}` of `admin.roles.{role}` is not known on this machine");
    Check::warn("roles", detail, "correct the name, or add the user or group")
}

/// Check of the log's folder, retention and free space.
fn store(config: &Config) -> Check {
    let dir = config.audit.dir.clone().unwrap_or_else(|| config.state_dir.join("audit"));
    let retention = &config.audit.retention;
    let limits = match (retention.max_age, retention.max_size) {
        (None, None) => "records are kept for ever".to_owned(),
        (Some(age), None) => format!("records are kept for {age}"),
        (None, Some(size)) => format!("at most {size} of records are kept"),
        (Some(age), Some(size)) => format!("records are kept for {age}, at most {size} of them"),
    };
    if let Some(problem) = open_to_others(&dir) {
        return problem;
    }
    let there = dir.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let free = statvfs(there)
        .map(|disk| disk.blocks_available().saturating_mul(disk.fragment_size()))
        .unwrap_or(u64::MAX);
    let detail = format!("{}: {limits}", shown(&dir));
    if free < LITTLE {
        let detail = format!("{detail}; {} MiB are free", free >> 20);
        return Check::warn(
            "audit",
            detail,
            "make room: when the disk is full, calls are refused; `audit.retention` bounds the log",
        );
    }
    Check::ok("audit", detail)
}

fn open_to_others(dir: &Path) -> Option<Check> {
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            let detail = format!("{}: {error}", shown(dir));
            return Some(Check::warn("audit", detail, "run as the user who runs the proxy"));
        }
    };
    let mode = meta.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        let detail = format!("{} is open to others (mode {mode:o})", shown(dir));
        Check::warn("audit", detail, "`chmod 700` it, and verify the log if others could write")
    })
}
