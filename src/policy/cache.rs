//! Caches of answers, bounded by bytes: a name may be as long as a message.

use std::{
    hash::{Hash, Hasher},
    sync::LazyLock,
};

use ahash::RandomState;
use quick_cache::{
    Equivalent, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use super::request::{Action, DeliveredAs, Holder, Program, Resource, Subject};
use portcullis_protocol::claims::{Claimant, Claims};
use portcullis_protocol::{
    identity::{Principal, PrincipalKind},
    names::{Group, ServerName},
};

/// Approximate bound of one cache, in bytes.
const CAPACITY: u64 = 32 << 20;
/// Approximate bytes of an entry, without its names.
const ENTRY: u64 = 1024;

/// Hasher of names, which are hashed for every entry of every list. Its keys are random for each
/// process, so that nobody can choose names that collide.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The subject of requests, with its hash, which is computed once for all resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CachedSubject<'a> {
    hash: u64,
    party: Party<'a>,
}

/// A borrowed cache key: a request without its circumstances and arguments. Two principals share an
/// entry only if policies cannot distinguish them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RequestKey<'a> {
    subject: CachedSubject<'a>,
    action: Action,
    resource: CacheKey<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Party<'a> {
    Client { kind: &'a PrincipalKind, groups: &'a [Group], verified: bool },
    Server(&'a ServerName),
    Plugin(&'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CacheKey<'a> {
    Proxy,
    Party(Party<'a>),
    Item(Kind, &'a ServerName, &'a str),
    Program(&'a Program),
    Secret {
        holder: Party<'a>,
        name: &'a str,
        source: &'a str,
        delivery: DeliveredAs,
        client: Option<&'a str>,
    },
    Host(&'a str, u16),
    Grant(&'a str),
}

/// Kind of an item of a server; for a tool, with the claims of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tool(Claims),
    /// A tool under its own action.
    Typed(Claims),
    Prompt,
    Resource,
    Template,
}

impl Hash for CacheKey<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            CacheKey::Proxy => state.write_u8(0),
            CacheKey::Party(party) => {
                state.write_u8(1);
                party.hash(state);
            }
            CacheKey::Item(kind, server, name) => {
                // One byte, since it is hashed for every entry of every list.
                state.write_u8(match kind {
                    Kind::Prompt => 2,
                    Kind::Resource => 3,
                    Kind::Template => 4,
                    Kind::Tool(claims) | Kind::Typed(claims) => {
                        let Claims { read_only, destructive, idempotent, open_world, by } = *claims;
                        let by_operator = by == Claimant::Operator;
                        let bits = [read_only, destructive, idempotent, open_world, by_operator];
                        let first = if matches!(kind, Kind::Typed(_)) { 3 } else { 1 };
                        bits.iter().fold(first, |all, bit| all << 1 | u8::from(*bit))
                    }
                });
                server.as_str().hash(state);
                name.hash(state);
            }
            CacheKey::Program(program) => (5_u8, program).hash(state),
            CacheKey::Secret { holder, name, source, delivery, client } => {
                (6_u8, holder, name, source, delivery, client).hash(state);
            }
            CacheKey::Host(name, port) => (7_u8, name, port).hash(state),
            CacheKey::Grant(name) => (8_u8, name).hash(state),
        }
    }
}

impl<'a> CachedSubject<'a> {
    pub(super) fn of(subject: &Subject<'a>) -> Self {
        let party = match *subject {
            Subject::Client(principal) => principal.into(),
            Subject::Server(name) => Party::Server(name),
            Subject::Plugin(name) => Party::Plugin(name),
        };
        Self { hash: HASHER.hash_one(party), party }
    }
}

impl Hash for CachedSubject<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl<'a> RequestKey<'a> {
    pub(super) fn of(subject: CachedSubject<'a>, action: Action, resource: &Resource<'a>) -> Self {
        let resource = match *resource {
            Resource::Proxy => CacheKey::Proxy,
            Resource::Server(name) => CacheKey::Party(Party::Server(name)),
            Resource::Client(principal) => CacheKey::Party(principal.into()),
            Resource::Tool { server, name, claims } => {
                CacheKey::Item(Kind::Tool(claims), server, name)
            }
            Resource::Prompt { server, name } => CacheKey::Item(Kind::Prompt, server, name),
            Resource::Resource { server, uri } => CacheKey::Item(Kind::Resource, server, uri),
            Resource::Template { server, uri } => CacheKey::Item(Kind::Template, server, uri),
            Resource::Program(program) => CacheKey::Program(program),
            Resource::Secret { holder, name, source, delivery, client } => {
                let holder = match holder {
                    Holder::Server(server) => Party::Server(server),
                    Holder::Plugin(plugin) => Party::Plugin(plugin),
                };
                CacheKey::Secret { holder, name, source, delivery, client }
            }
            Resource::Host { name, port } => CacheKey::Host(name, port),
            Resource::Grant(name) => CacheKey::Grant(name),
        };
        Self { subject, action, resource }
    }

    /// The same key under the tool's own action.
    pub(super) fn own(self) -> Self {
        match self.resource {
            CacheKey::Item(Kind::Tool(claims), server, name) => {
                Self { resource: CacheKey::Item(Kind::Typed(claims), server, name), ..self }
            }
            _ => self,
        }
    }

    /// The same key for all items of that kind on the same server. A tool's own action belongs to
    /// one name, so its key is unchanged.
    pub(super) fn nameless(self) -> Self {
        match self.resource {
            CacheKey::Item(Kind::Typed(_), ..) => self,
            CacheKey::Item(kind, server, _) => {
                Self { resource: CacheKey::Item(kind, server, ""), ..self }
            }
            _ => self,
        }
    }

    pub(super) fn key(&self) -> Key {
        let party = |party: &Party<'_>| match *party {
            Party::Client { kind, groups, verified } => {
                OwnedParty::Client { kind: kind.clone(), groups: groups.into(), verified }
            }
            Party::Server(name) => OwnedParty::Server(name.clone()),
            Party::Plugin(name) => OwnedParty::Plugin(name.into()),
        };
        Key {
            subject: (self.subject.hash, party(&self.subject.party)),
            action: self.action,
            resource: match &self.resource {
                CacheKey::Proxy => OwnedResource::Proxy,
                CacheKey::Party(other) => OwnedResource::Party(party(other)),
                CacheKey::Item(kind, server, name) => {
                    OwnedResource::Item(*kind, (*server).clone(), (*name).into())
                }
                CacheKey::Program(program) => OwnedResource::Program((*program).clone()),
                CacheKey::Secret { holder, name, source, delivery, client } => {
                    OwnedResource::Secret {
                        holder: party(holder),
                        name: (*name).into(),
                        source: (*source).into(),
                        delivery: *delivery,
                        client: client.map(Into::into),
                    }
                }
                CacheKey::Host(name, port) => OwnedResource::Host((*name).into(), *port),
                CacheKey::Grant(name) => OwnedResource::Grant((*name).into()),
            },
        }
    }
}

impl<'a> From<&'a Principal> for Party<'a> {
    fn from(principal: &'a Principal) -> Self {
        Self::Client {
            kind: &principal.kind,
            groups: &principal.groups,
            verified: principal.verified,
        }
    }
}

/// An owned [`RequestKey`].
#[derive(Debug)]
pub(super) struct Key {
    subject: (u64, OwnedParty),
    action: Action,
    resource: OwnedResource,
}

#[derive(Debug)]
enum OwnedParty {
    Client { kind: PrincipalKind, groups: Box<[Group]>, verified: bool },
    Server(ServerName),
    Plugin(Box<str>),
}

#[derive(Debug)]
enum OwnedResource {
    Proxy,
    Party(OwnedParty),
    Item(Kind, ServerName, Box<str>),
    Program(Program),
    Secret {
        holder: OwnedParty,
        name: Box<str>,
        source: Box<str>,
        delivery: DeliveredAs,
        client: Option<Box<str>>,
    },
    Host(Box<str>, u16),
    Grant(Box<str>),
}

impl OwnedParty {
    fn party(&self) -> Party<'_> {
        match self {
            Self::Client { kind, groups, verified } => {
                Party::Client { kind, groups, verified: *verified }
            }
            Self::Server(name) => Party::Server(name),
            Self::Plugin(name) => Party::Plugin(name),
        }
    }
}

impl Key {
    fn request_key(&self) -> RequestKey<'_> {
        RequestKey {
            subject: CachedSubject { hash: self.subject.0, party: self.subject.1.party() },
            action: self.action,
            resource: match &self.resource {
                OwnedResource::Proxy => CacheKey::Proxy,
                OwnedResource::Party(other) => CacheKey::Party(other.party()),
                OwnedResource::Item(kind, server, name) => CacheKey::Item(*kind, server, name),
                OwnedResource::Program(program) => CacheKey::Program(program),
                OwnedResource::Secret { holder, name, source, delivery, client } => {
                    CacheKey::Secret {
                        holder: holder.party(),
                        name,
                        source,
                        delivery: *delivery,
                        client: client.as_deref(),
                    }
                }
                OwnedResource::Host(name, port) => CacheKey::Host(name, *port),
                OwnedResource::Grant(name) => CacheKey::Grant(name),
            },
        }
    }

    /// Approximate bytes of the key and its value. Names of clients, servers and groups are short.
    fn weight(&self) -> u64 {
        let name = match &self.resource {
            OwnedResource::Proxy | OwnedResource::Party(_) => 0,
            // From the operator's config, and few.
            OwnedResource::Program(_)
            | OwnedResource::Secret { .. }
            | OwnedResource::Host(..)
            | OwnedResource::Grant(_) => 0,
            OwnedResource::Item(_, _, name) => name.len() as u64,
        };
        let groups = match &self.subject.1 {
            OwnedParty::Client { groups, .. } => groups.len() as u64,
            OwnedParty::Server(_) | OwnedParty::Plugin(_) => 0,
        };
        // The entity of a resource has its name in its id, and in its attributes as a URI, a path,
        // a URL and parts of one.
        ENTRY + 8 * name + 128 * groups
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.request_key().hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.request_key() == other.request_key()
    }
}

impl Eq for Key {}

impl Equivalent<Key> for RequestKey<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self == key.request_key()
    }
}

/// Bytes of a cached value, beyond those of every entry. Constant for a value.
pub(super) trait CachedSize {
    fn weight(&self) -> u64;
}

impl<V: CachedSize> CachedSize for std::sync::Arc<V> {
    fn weight(&self) -> u64 {
        self.as_ref().weight()
    }
}

#[derive(Debug, Clone)]
pub(super) struct ByBytes;

impl<V: CachedSize> Weighter<Key, V> for ByBytes {
    fn weight(&self, key: &Key, value: &V) -> u64 {
        key.weight() + value.weight()
    }
}

/// Cache of answers.
pub(super) type Answers<V> = Cache<Key, V, ByBytes, RandomState>;

/// An empty cache.
pub(super) fn empty<V: CachedSize + Clone>() -> Answers<V> {
    let entries = (CAPACITY / ENTRY) as usize;
    Cache::with(entries, CAPACITY, ByBytes, HASHER.clone(), DefaultLifecycle::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl CachedSize for bool {
        fn weight(&self) -> u64 {
            0
        }
    }

    #[test]
    fn long_names_do_not_exhaust_memory() {
        let cache = empty::<bool>();
        let server: ServerName = "s".parse().unwrap();
        for i in 0..200 {
            let uri = format!("{i}{}", "x".repeat(1 << 20));
            let resource = Resource::Resource { server: &server, uri: &uri };
            let subject = CachedSubject::of(&Subject::Server(&server));
            cache.insert(RequestKey::of(subject, Action::ReadResource, &resource).key(), true);
        }
        assert!(cache.weight() <= CAPACITY);
        assert!(cache.len() < 16, "{}", cache.len());
    }

    #[test]
    fn hash_collision_shares_no_result() {
        let cache = empty::<bool>();
        let [ci, other]: [PrincipalKind; 2] =
            ["ci", "other"].map(|name| PrincipalKind::Client(name.parse().unwrap()));
        let bots: [Group; 1] = ["bots".parse().unwrap()];
        let client = |kind, groups, verified| Party::Client { kind, groups, verified };
        let parties = [
            client(&ci, &bots, true),
            client(&ci, &[], true),
            client(&ci, &bots, false),
            client(&other, &bots, true),
            Party::Plugin("ci"),
        ];
        let request_key = |party| {
            RequestKey::of(CachedSubject { hash: 1, party }, Action::Connect, &Resource::Proxy)
        };
        for (at, party) in parties.into_iter().enumerate() {
            assert_eq!(cache.get(&request_key(party)), None, "{party:?}");
            cache.insert(request_key(party).key(), at.is_multiple_of(2));
        }
        for (at, party) in parties.into_iter().enumerate() {
            assert_eq!(cache.get(&request_key(party)), Some(at.is_multiple_of(2)), "{party:?}");
        }
    }
}
