//! Lease of a container: lasts as long as the process that wrote it.

use std::{fmt, fs, str::FromStr};

use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use sha2::{Digest, Sha256};

/// Identity of a process, distinct from every other process that ever has the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Hash of the machine's id, because the id itself is confidential (machine-id(5)).
    machine: String,
    boot: String,
    /// Process numbers are valid within one namespace only.
    namespace: String,
    pid: i32,
    /// Clock ticks from boot to the start of the process.
    started: u64,
}

/// Error for a label that no [`Lease`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an owner label")]
pub(crate) struct IllegalOwner;

impl Lease {
    /// Lease of this process.
    pub fn current() -> Self {
        let pid = Pid::this().as_raw();
        Self {
            machine: machine(),
            boot: word(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()),
            namespace: word(namespace()),
            pid,
            started: stat(pid).map_or(0, |stat| stat.started),
        }
    }

    /// Whether the process has certainly ended. A process that cannot be observed from here
    /// (another machine, another process namespace, a hidden process) counts as alive.
    pub fn gone(&self, from: &Self) -> bool {
        let is_known = |s: &str| s != UNKNOWN;
        if self.boot != from.boot {
            // Either the same machine after a restart, or another machine that uses the same
            // engine.
            return is_known(&self.machine)
                && self.machine == from.machine
                && is_known(&self.boot)
                && is_known(&from.boot);
        }
        if !is_known(&self.boot) || self.namespace != from.namespace || !is_known(&self.namespace) {
            return false;
        }
        if self.pid <= 0 {
            return false;
        }
        if kill(Pid::from_raw(self.pid), None) == Err(Errno::ESRCH) {
            return true;
        }
        stat(self.pid).is_some_and(|stat| stat.dead || stat.started != self.started)
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, boot, namespace, pid, started } = self;
        write!(f, "{machine} {boot} {namespace} {pid} {started}")
    }
}

impl FromStr for Lease {
    type Err = IllegalOwner;

    fn from_str(label: &str) -> Result<Self, IllegalOwner> {
        let words: Vec<&str> = label.split(' ').collect();
        let [machine, boot, namespace, pid, started] = words.as_slice() else {
            return Err(IllegalOwner);
        };
        Ok(Self {
            machine: (*machine).to_owned(),
            boot: (*boot).to_owned(),
            namespace: (*namespace).to_owned(),
            pid: pid.parse().map_err(|_| IllegalOwner)?,
            started: started.parse().map_err(|_| IllegalOwner)?,
        })
    }
}

const UNKNOWN: &str = "-";

fn word(text: Option<String>) -> String {
    match text.as_deref().map(str::trim) {
        Some(text) if !text.is_empty() && !text.contains(char::is_whitespace) => text.to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

fn machine() -> String {
    match fs::read_to_string("/etc/machine-id") {
        Ok(id) if !id.trim().is_empty() => {
            let mut hash = Sha256::new_with_prefix("portcullis owner\0");
            hash.update(id.trim());
            hex::encode(&hash.finalize()[..8])
        }
        _ => UNKNOWN.to_owned(),
    }
}

fn namespace() -> Option<String> {
    fs::read_link("/proc/self/ns/pid").ok().map(|link| link.to_string_lossy().into_owned())
}

struct Stat {
    dead: bool,
    started: u64,
}

/// Reads proc_pid_stat(5). The second field, the name, may contain anything, so fields are counted
/// from its closing parenthesis.
fn stat(pid: i32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let dead = matches!(fields.next()?, "Z" | "X" | "x");
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { dead, started })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn label_round_trips() {
        let me = Lease::current();
        assert_eq!(me.to_string().parse(), Ok(me.clone()));
        assert!(me.started > 0 && me.boot != UNKNOWN && me.namespace != UNKNOWN);
        for label in ["", "a b c", "a b c d e", "a b c 1 x", "a b c 1 2 3"] {
            assert_eq!(label.parse::<Lease>(), Err(IllegalOwner), "{label}");
        }
    }

    #[test]
    fn process_counts_as_gone_only_if_certain() {
        let me = Lease::current();
        let gone = |change: fn(&mut Lease)| {
            let mut owner = Lease { machine: "m".into(), ..me.clone() };
            change(&mut owner);
            owner.gone(&Lease { machine: "m".into(), ..me.clone() })
        };
        assert!(!gone(|_| ()));
        assert!(gone(|o| o.started += 1));
        assert!(gone(|o| o.boot = "earlier".into()));
        assert!(!gone(|o| {
            o.boot = "elsewhere".into();
            o.machine = "other".into();
        }));
        assert!(!gone(|o| o.boot = UNKNOWN.into()));
        assert!(!gone(|o| {
            o.namespace = "pid:[1]".into();
            o.started += 1;
        }));
        assert!(!gone(|o| o.pid = 0));
        assert!(!gone(|o| o.pid = -1));
    }

    #[test]
    fn zombie_process_counts_as_gone() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let me = Lease::current();
        let owner = Lease { pid, started: stat(pid).unwrap().started, ..me.clone() };
        assert!(!owner.gone(&me));
        drop(child.stdin.take());
        while !stat(pid).unwrap().dead {
            std::thread::yield_now();
        }
        assert!(owner.gone(&me));
        child.wait().unwrap();
        assert!(owner.gone(&me));
    }
}
