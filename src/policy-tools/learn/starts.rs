//! What the proxy did for servers: the programs that it started, the secrets that it delivered, and
//! the hosts that it connected them to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Learner, NAMES, uid};
use portcullis_audit::record::{Entry, Event, Record, RuntimeKind};

/// Names of the events that [`Learner::take_start`] reads.
pub const START_EVENTS: [&str; 4] =
    ["server-launching", "secrets-delivered", "egress-opened", "egress-connecting"];

/// A started program: runtime, name and digest. A remote server has no name: policies see its whole
/// URL, which is not recorded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    runtime: &'static str,
    name: Option<String>,
    digest: Option<String>,
}

/// What the proxy did for one server.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// The programs, each with its deviations from the hardened profile.
    programs: BTreeMap<Program, BTreeSet<String>>,
    secrets: BTreeSet<String>,
    hosts: BTreeSet<(String, u16)>,
}

impl Learner {
    /// Learns from a record of the start of a server, its secrets or its connections.
    pub fn take_start(&mut self, entry: &Entry) {
        let Record::Event(record) = &entry.record else { return };
        let server = match &record.what {
            Event::ServerLaunching(event) => &event.server,
            Event::SecretsDelivered(event) => &event.server,
            Event::EgressOpened(event) => &event.server,
            Event::EgressConnecting(event) => &event.server,
            _ => return,
        };
        let starts = self.starts.entry(server.clone()).or_default();
        if starts.len() >= NAMES {
            *self.left_out.entry("too many names").or_default() += 1;
            return;
        }
        match &record.what {
            Event::ServerLaunching(event) => {
                let (runtime, name) = match event.kind {
                    RuntimeKind::Container => ("container", Some(event.program.clone())),
                    RuntimeKind::Sandbox => ("sandbox", Some(event.program.clone())),
                    RuntimeKind::Remote => ("remote", None),
                };
                let program = Program { runtime, name, digest: event.digest.clone() };
                let deviations = event.deviations.iter().cloned();
                starts.programs.entry(program).or_default().extend(deviations);
            }
            Event::SecretsDelivered(event) => {
                starts.secrets.extend(event.secrets.iter().map(|one| one.secret.clone()));
            }
            Event::EgressOpened(event) => starts.hosts.extend(host_of(&event.url)),
            Event::EgressConnecting(event) => {
                starts.hosts.insert((event.host.clone(), event.port));
            }
            _ => {}
        }
    }
}

/// Host and port of a URL.
fn host_of(url: &str) -> Option<(String, u16)> {
    let url = url::Url::parse(url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some((host, url.port_or_known_default()?))
}

impl Starts {
    fn len(&self) -> usize {
        self.programs.len() + self.secrets.len() + self.hosts.len()
    }

    /// Number of policies that [`Starts::write`] writes.
    pub fn policies(&self) -> usize {
        let parts = [self.programs.is_empty(), self.secrets.is_empty(), self.hosts.is_empty()];
        parts.iter().filter(|is_empty| !**is_empty).count()
    }

    /// Writes the policies that permit it, before formatting.
    pub fn write(&self, text: &mut String, server: &str) {
        let mut policy = |part: &str, action: &str, comment: &str, resource: &str| {
            let (id, who) = (server.escape_debug(), uid("Server", server));
            let action = uid("Action", action);
            let _ = write!(
                text,
                "\n// {comment}\n@id(\"{id}/{part}\")\npermit (principal == {who}, action == {action}, \
                 resource) when {{ {resource} }};\n"
            );
        };
        if !self.programs.is_empty() {
            let all: Vec<_> = self.programs.iter().map(|(program, of)| program.shown(of)).collect();
            policy(
                "launch",
                "launch",
                "It starts as recorded, and not from another file.",
                &either(all),
            );
        }
        if !self.secrets.is_empty() {
            let all = self.secrets.iter().map(|name| uid("Secret", &format!("{server}/{name}")));
            let all = format!("resource in [{}]", all.collect::<Vec<_>>().join(", "));
            policy("secrets", "deliver_secret", "It gets these secrets.", &all);
        }
        if !self.hosts.is_empty() {
            let all = self.hosts.iter().map(|(host, port)| {
                format!("resource.name == {} && resource.port == {port}", literal(host))
            });
            policy("egress", "egress", "It connects to these hosts.", &either(all.collect()));
        }
    }
}

impl Program {
    fn shown(&self, deviations: &BTreeSet<String>) -> String {
        let mut all = vec![format!("resource.runtime == {}", literal(self.runtime))];
        if let Some(name) = &self.name {
            all.push(format!("resource.name == {}", literal(name)));
        }
        if let Some(digest) = &self.digest {
            all.push(format!("resource has digest && resource.digest == {}", literal(digest)));
        }
        all.push(if deviations.is_empty() {
            "resource.deviations.isEmpty()".to_owned()
        } else {
            let all: Vec<_> = deviations.iter().map(|key| literal(key)).collect();
            format!("[{}].containsAll(resource.deviations)", all.join(", "))
        });
        all.join(" && ")
    }
}

fn either(conditions: Vec<String>) -> String {
    match conditions.as_slice() {
        [one] => one.clone(),
        all => all.iter().map(|one| format!("({one})")).collect::<Vec<_>>().join(" || "),
    }
}

/// A string in Cedar's syntax.
fn literal(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}
