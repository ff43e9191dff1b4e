//! Answers that are kept, bounded by what they take: a name may be as long as a message.

use quick_cache::{Weighter, sync::Cache};

use super::request::{Action, Claims, Program, Resource, Subject};
use crate::{
    identity::{Principal, PrincipalKind},
    names::{Group, ServerName},
};

/// Bytes that one cache may take, about.
const CAPACITY: u64 = 16 << 20;
/// Bytes of an entry, about, beside its names.
const ENTRY: u64 = 512;

/// All of a question but its circumstances and arguments. What depends on these alone can be kept
/// under them: two principals share an entry only if policies cannot tell them apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    subject: Party,
    action: Action,
    resource: Asked,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Party {
    Client { kind: PrincipalKind, groups: Vec<Group>, verified: bool },
    Server(ServerName),
    Plugin(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Asked {
    Proxy,
    Party(Party),
    Tool(ServerName, String, Claims),
    Prompt(ServerName, String),
    Resource(ServerName, String),
    Template(ServerName, String),
    Program(Program),
    Secret { server: ServerName, name: String, source: String, header: bool },
    Host(String, u16),
    Grant(String),
}

impl Key {
    pub(super) fn of(subject: &Subject<'_>, action: Action, resource: &Resource<'_>) -> Self {
        let subject = match *subject {
            Subject::Client(principal) => principal.into(),
            Subject::Server(name) => Party::Server(name.clone()),
            Subject::Plugin(name) => Party::Plugin(name.to_owned()),
        };
        let resource = match *resource {
            Resource::Proxy => Asked::Proxy,
            Resource::Server(name) => Asked::Party(Party::Server(name.clone())),
            Resource::Client(principal) => Asked::Party(principal.into()),
            Resource::Tool { server, name, claims } => {
                Asked::Tool(server.clone(), name.to_owned(), claims)
            }
            Resource::Prompt { server, name } => Asked::Prompt(server.clone(), name.to_owned()),
            Resource::Resource { server, uri } => Asked::Resource(server.clone(), uri.to_owned()),
            Resource::Template { server, uri } => Asked::Template(server.clone(), uri.to_owned()),
            Resource::Program(program) => Asked::Program(program.clone()),
            Resource::Secret { server, name, source, header } => Asked::Secret {
                server: server.clone(),
                name: name.to_owned(),
                source: source.to_owned(),
                header,
            },
            Resource::Host { name, port } => Asked::Host(name.to_owned(), port),
            Resource::Grant(name) => Asked::Grant(name.to_owned()),
        };
        Self { subject, action, resource }
    }
}

impl From<&Principal> for Party {
    fn from(principal: &Principal) -> Self {
        Self::Client {
            kind: principal.kind.clone(),
            groups: principal.groups.clone(),
            verified: principal.verified,
        }
    }
}

/// Weighs an entry by its longest names. Those of clients, servers and groups are short.
#[derive(Debug, Clone)]
pub(super) struct ByNames;

impl<V> Weighter<Key, V> for ByNames {
    fn weight(&self, key: &Key, _: &V) -> u64 {
        let name = match &key.resource {
            Asked::Proxy | Asked::Party(_) => 0,
            Asked::Tool(_, name, _)
            | Asked::Prompt(_, name)
            | Asked::Resource(_, name)
            | Asked::Template(_, name) => name.len() as u64,
            // The operator's own, and few.
            Asked::Program(_) | Asked::Secret { .. } | Asked::Host(..) | Asked::Grant(_) => 0,
        };
        let groups = match &key.subject {
            Party::Client { groups, .. } => groups.len() as u64,
            Party::Server(_) | Party::Plugin(_) => 0,
        };
        // A resource's entity has its name three times: in its id and in its attributes.
        ENTRY + 4 * name + 128 * groups
    }
}

/// What is kept under keys.
pub(super) type Kept<V> = Cache<Key, V, ByNames>;

/// An empty cache.
pub(super) fn empty<V: Clone>() -> Kept<V> {
    Cache::with_weighter((CAPACITY / ENTRY) as usize, CAPACITY, ByNames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_do_not_fill_the_memory() {
        let kept = empty::<bool>();
        let server: ServerName = "s".parse().unwrap();
        for i in 0..200 {
            let uri = format!("{i}{}", "x".repeat(1 << 20));
            let resource = Resource::Resource { server: &server, uri: &uri };
            kept.insert(Key::of(&Subject::Server(&server), Action::ReadResource, &resource), true);
        }
        assert!(kept.weight() <= CAPACITY);
        assert!(kept.len() < 8, "{}", kept.len());
    }
}
