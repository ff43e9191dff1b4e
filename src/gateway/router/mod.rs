//! The server of a tool, prompt or resource, and the content of the merged lists.
//!
//! # Invariants
//! - The operator decides merged names. A server cannot move or shadow another server's items by
//!   its own name or those of its tools: at the endpoint of all servers, every tool and prompt has
//!   its server's prefix.

mod merged_names;
mod pages;
mod selectors;
mod server_lists;
mod template;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all, stream::FuturesOrdered};
use indexmap::IndexMap;
use serde_json::Value;

use crate::{app_uris, stages::ClientContext};
use portcullis_protocol::tool_names;
use portcullis_protocol::{
    codec::Object,
    exchange::{Definition, Method, Revision, Target, View},
    names::{ServerName, nearest_of},
    refusal::{Code, Refusal},
};
use portcullis_upstream::{ListKind, Server};

use merged_names::MergedNames;
use selectors::{Reference, reference};
use server_lists::ServerLists;

pub use pages::{Cursor, Page, PageLimits};
pub use selectors::selects_once;

/// Destination of a message.
pub struct Route {
    /// The server; if absent, the proxy answers itself.
    pub server: Option<Arc<Server>>,
    pub target: Target,
    /// `params` with the server's own names, if they differ from the client's.
    pub params: Option<Bytes>,
}

/// All servers of the config, in its order. Reloads replace the whole set, so each operation sees
/// one consistent set.
pub struct Router {
    lists_by_server: ArcSwap<ListsByServer>,
}

type ListsByServer = IndexMap<ServerName, Arc<ServerLists>>;

/// Decides whether a principal may use an item, before a server is started to look for it.
pub trait Visibility: Sync {
    /// Whether it may call a tool, judged by the tool's name.
    fn tool(&self, server: &ServerName, name: &str) -> bool;
    fn prompt(&self, server: &ServerName, name: &str) -> bool;
    /// Whether it may complete arguments of a prompt.
    fn completes(&self, server: &ServerName, name: &str) -> bool;
    fn resource(&self, server: &ServerName, uri: &str) -> bool;
    /// Whether it may see a server's lists in the merged lists.
    fn server(&self, server: &ServerName) -> bool;
    /// Whether it may see an item of a list.
    fn item(&self, offer: ListKind, definition: &Definition) -> bool;
}

impl Router {
    /// A router over these servers.
    pub fn new(servers: impl IntoIterator<Item = Arc<Server>>) -> Self {
        let router = Self { lists_by_server: ArcSwap::default() };
        router.set(servers);
        router
    }

    /// Replaces the servers. A server that remains keeps its known lists.
    pub fn set(&self, servers: impl IntoIterator<Item = Arc<Server>>) {
        let servers: Vec<_> = servers.into_iter().collect();
        let prefixes: Vec<_> =
            servers.iter().map(|server| server_lists::prefix(server).to_owned()).collect();
        let before = self.lists_by_server.load();
        let lists_by_server = servers.into_iter().map(|server| {
            let own = server_lists::prefix(&server);
            // Only names without a prefix could be mistaken for another server's.
            let others: Vec<_> = match own.is_empty() {
                true => prefixes.iter().filter(|other| *other != own).cloned().collect(),
                false => Vec::new(),
            };
            let existing = before
                .get(&server.name)
                .filter(|server_lists| server_lists.is_of(&server, &others));
            let server_lists =
                existing.cloned().unwrap_or_else(|| ServerLists::new(server.clone(), others));
            (server.name.clone(), server_lists)
        });
        self.lists_by_server.store(Arc::new(lists_by_server.collect()));
    }

    /// The servers of a view.
    pub fn servers(&self, view: &View) -> Vec<Arc<Server>> {
        match view {
            View::All => self
                .lists_by_server
                .load()
                .values()
                .map(|server_lists| server_lists.server.clone())
                .collect(),
            View::One(name) => self.server(name).into_iter().collect(),
        }
    }

    /// The server with this name.
    pub fn server(&self, name: &ServerName) -> Option<Arc<Server>> {
        self.lists_by_server.load().get(name).map(|server_lists| server_lists.server.clone())
    }

    fn server_lists(&self, name: &ServerName) -> Result<Arc<ServerLists>, Refusal> {
        self.lists_by_server
            .load()
            .get(name)
            .cloned()
            .ok_or_else(|| Refusal::new(Code::Unknown, format!("server `{name}` does not exist")))
    }

    /// Finds the destination of a request. A server is started to look for a tool only if `sight`
    /// allows the tool, so that clients without permission start no servers.
    ///
    /// # Errors
    /// A refusal if the target does not exist.
    pub(crate) async fn route(
        &self,
        (client, view): (&ClientContext, &View),
        method: &Method,
        params: &Bytes,
        sight: &dyn Visibility,
    ) -> Result<Route, Refusal> {
        let object = || {
            let object = Object::parse(params.clone())
                .map_err(|flaw| Refusal::new(Code::InvalidParams, flaw.to_string()))?;
            selects_once(method, &object)?;
            Ok::<_, Refusal>(object)
        };
        match method.as_str() {
            Method::TOOLS_CALL => {
                let object = object()?;
                if object.get("arguments").is_some_and(|a| a.first() != Some(&b'{')) {
                    return Err(Refusal::new(Code::InvalidParams, "`arguments` must be an object"));
                }
                let outer = required(&object, "name")?;
                let (server_lists, name) =
                    self.owner((client, view), &outer, ListKind::Tools, sight).await?;
                let server = server_lists.server.clone();
                let tool = if sight.tool(&server.name, &name) {
                    let server_lists = server_lists.of(client, ListKind::Tools).await;
                    let found = server_lists.complete(ListKind::Tools).await;
                    let catalog = found.map_err(|failure| failure.refusal(&server.name))?;
                    match view {
                        View::All => catalog.get(&outer).cloned(),
                        View::One(_) => {
                            catalog.items().iter().find(|item| item.name == name).cloned()
                        }
                    }
                } else {
                    None
                };
                let params = renamed(&object, "name", &outer, &name);
                Ok(Route { server: Some(server), target: Target::Tool { name, tool }, params })
            }
            Method::PROMPTS_GET => {
                let object = object()?;
                let outer = required(&object, "name")?;
                let could = |server: &_, name: &_| sight.prompt(server, name);
                let (server_lists, name, prompt) =
                    self.prompt((client, view), &outer, sight, could).await?;
                let params = renamed(&object, "name", &outer, &name);
                let server = Some(server_lists.server.clone());
                Ok(Route { server, target: Target::Prompt { name, prompt }, params })
            }
            Method::RESOURCES_READ | "resources/subscribe" | "resources/unsubscribe" => {
                let object = object()?;
                let uri = required(&object, "uri")?;
                if let Some(app) = app_uris::parse(view, &uri) {
                    let (server, own) = self.app(app)?;
                    let params = renamed(&object, "uri", &uri, &own);
                    let target = Target::Resource { uri: own };
                    return Ok(Route { server: Some(server), target, params });
                }
                let server = self
                    .holder((client, view), &uri, UnlistedResource::ToOnlyServer, sight)
                    .await?;
                Ok(Route { server: Some(server), target: Target::Resource { uri }, params: None })
            }
            Method::COMPLETE => {
                let object = object()?;
                let raw = object
                    .object("ref")
                    .ok_or_else(|| Refusal::new(Code::InvalidParams, "`ref` must be an object"))?;
                let outer = match reference(&raw)? {
                    Reference::Prompt(name) => name,
                    Reference::Resource(uri) => {
                        if let Some(app) = app_uris::parse(view, &uri) {
                            let (server, own) = self.app(app)?;
                            let params = renamed(&raw, "uri", &uri, &own)
                                .map(|reference| object.with(&[("ref", Some(&reference))]));
                            let target = Target::Resource { uri: own };
                            return Ok(Route { server: Some(server), target, params });
                        }
                        let server = self
                            .holder((client, view), &uri, UnlistedResource::Unknown, sight)
                            .await?;
                        let target = Target::Resource { uri };
                        return Ok(Route { server: Some(server), target, params: None });
                    }
                };
                let could = |server: &_, name: &_| sight.completes(server, name);
                let (server_lists, name, prompt) =
                    self.prompt((client, view), &outer, sight, could).await?;
                let params = renamed(&raw, "name", &outer, &name)
                    .map(|reference| object.with(&[("ref", Some(&reference))]));
                let server = Some(server_lists.server.clone());
                Ok(Route { server, target: Target::Prompt { name, prompt }, params })
            }
            _ => Ok(Route {
                server: match view {
                    View::All => None,
                    View::One(name) => self.server(name),
                },
                target: Target::None,
                params: None,
            }),
        }
    }

    /// The server of an App, and its own URI for it.
    fn app(&self, app: Option<(ServerName, String)>) -> Result<(Arc<Server>, String), Refusal> {
        let found = app.and_then(|(server, uri)| Some((self.server(&server)?, uri)));
        found.ok_or_else(|| Refusal::new(Code::Unknown, "the resource does not exist"))
    }

    /// The server of a merged name, and its own name for the item. The server's list is requested
    /// only for names that may have been changed.
    async fn owner(
        &self,
        (client, view): (&ClientContext, &View),
        outer: &str,
        offer: ListKind,
        sight: &dyn Visibility,
    ) -> Result<(Arc<ServerLists>, String), Refusal> {
        if let View::One(name) = view {
            return Ok((self.server_lists(name)?, outer.to_owned()));
        }
        let Some((server_lists, inner)) = self.by_prefix(outer) else {
            let near = self.nearest((client, view), None, outer, offer, sight);
            return Err(unknown(&near));
        };
        if tool_names::may_be_changed(inner) && sight.server(&server_lists.server.name) {
            let found = server_lists.of(client, offer).await.complete(offer).await;
            let catalog = found.map_err(|failure| failure.refusal(&server_lists.server.name))?;
            if let Some(item) = catalog.get(outer) {
                return Ok((server_lists, item.name.clone()));
            }
        }
        Ok((server_lists, inner.to_owned()))
    }

    /// The server with the prefix of a name, and the name without it.
    fn by_prefix<'n>(&self, outer: &'n str) -> Option<(Arc<ServerLists>, &'n str)> {
        // The longest prefix wins. All other names belong to the server without a prefix.
        let lists_by_server = self.lists_by_server.load_full();
        lists_by_server
            .values()
            .filter_map(|server_lists| {
                Some((server_lists.clone(), tool_names::inner(server_lists.prefix(), outer)?))
            })
            .max_by_key(|(server_lists, _)| server_lists.prefix().len())
    }

    /// The server and the target of a request that could not be routed, for the record. Uses only
    /// the text of the name; no server is involved.
    pub fn named(
        &self,
        view: &View,
        method: &Method,
        params: &Bytes,
    ) -> (Option<ServerName>, Target) {
        let server = match view {
            View::All => None,
            View::One(name) => Some(name.clone()),
        };
        let nothing = || (server.clone(), Target::None);
        let Ok(params) = Object::parse(params.clone()) else { return nothing() };
        let reference = match method.as_str() {
            Method::COMPLETE => params.object("ref"),
            _ => Some(params),
        };
        let Some(reference) = reference else { return nothing() };
        let is_prompt = match method.as_str() {
            Method::TOOLS_CALL => false,
            Method::PROMPTS_GET => true,
            Method::COMPLETE if reference.string("type").as_deref() != Some("ref/resource") => true,
            Method::COMPLETE
            | Method::RESOURCES_READ
            | "resources/subscribe"
            | "resources/unsubscribe" => {
                let Some(uri) = reference.string("uri") else { return (server, Target::None) };
                return match app_uris::parse(view, &uri).flatten() {
                    Some((server, uri)) => (Some(server), Target::Resource { uri }),
                    None => (server, Target::Resource { uri }),
                };
            }
            _ => return nothing(),
        };
        let Some(outer) = reference.string("name") else { return nothing() };
        let (server, name) = match (server, self.by_prefix(&outer)) {
            (None, Some((server_lists, inner))) => {
                (Some(server_lists.server.name.clone()), inner.to_owned())
            }
            (server, _) => (server, outer),
        };
        match is_prompt {
            true => (server, Target::Prompt { name, prompt: None }),
            false => (server, Target::Tool { name, tool: None }),
        }
    }

    /// The server of a prompt, and its own name for it. If the principal `could` do what it
    /// requests, the prompt must be listed.
    async fn prompt(
        &self,
        (client, view): (&ClientContext, &View),
        outer: &str,
        sight: &dyn Visibility,
        could: impl Fn(&ServerName, &str) -> bool,
    ) -> Result<(Arc<ServerLists>, String, Option<Arc<Definition>>), Refusal> {
        let (server_lists, name) =
            self.owner((client, view), outer, ListKind::Prompts, sight).await?;
        // Policy compares names exactly, but a server may not.
        let mut prompt = None;
        if could(&server_lists.server.name, &name) {
            let lists = server_lists.of(client, ListKind::Prompts).await;
            let found = lists.complete(ListKind::Prompts).await;
            let catalog = found.map_err(|failure| failure.refusal(&server_lists.server.name))?;
            prompt = match view {
                View::All => catalog.get(outer).cloned(),
                View::One(_) => catalog.items().iter().find(|item| item.name == name).cloned(),
            };
            if prompt.is_none() {
                let of = Some(&server_lists.server.name);
                let near = self.nearest((client, view), of, outer, ListKind::Prompts, sight);
                return Err(unknown(&near));
            }
        }
        Ok((server_lists, name, prompt))
    }

    /// The server of a resource other than an App: the first in the config that lists it, otherwise the first with a
    /// matching template. Only servers whose resource the principal may read are involved. A server
    /// that is unavailable keeps its last list, so no other can take over its resources meanwhile.
    /// Servers may have resources that they do not list: an unlisted one is requested from the only
    /// server that could have it.
    async fn holder(
        &self,
        (client, view): (&ClientContext, &View),
        uri: &str,
        unlisted: UnlistedResource,
        sight: &dyn Visibility,
    ) -> Result<Arc<Server>, Refusal> {
        if let View::One(name) = view {
            return self.server_lists(name).map(|server_lists| server_lists.server.clone());
        }
        let lists_by_server = self.lists_by_server.load_full();
        let readable = lists_by_server.values().filter(|s| sight.resource(&s.server.name, uri));
        // Items that the principal can see in lists come first.
        let (seen, unseen): (Vec<_>, Vec<_>) =
            readable.partition(|server_lists| sight.server(&server_lists.server.name));
        let candidates = seen.into_iter().chain(unseen);
        let candidates =
            candidates.map(|server_lists| server_lists.of(client, ListKind::Resources));
        let candidates = join_all(candidates).await;
        let mut lists: FuturesOrdered<_> = candidates
            .iter()
            .map(async |server_lists| (server_lists, last(server_lists, ListKind::Resources).await))
            .collect();
        while let Some((server_lists, list)) = lists.next().await {
            if list.is_some_and(|catalog| catalog.get(uri).is_some()) {
                return Ok(server_lists.server.clone());
            }
        }
        let lists =
            join_all(candidates.iter().map(|server_lists| last(server_lists, ListKind::Templates)))
                .await;
        let mut first: Option<(&Arc<ServerLists>, Arc<MergedNames>)> = None;
        for (server_lists, list) in candidates.iter().zip(lists) {
            let Some(list) = list else { continue };
            // The template itself, for the completion of an argument.
            if list.get(uri).is_some() && first.is_none() {
                return Ok(server_lists.server.clone());
            }
            let mut matching = list.entries().iter().filter(|e| template::matches(&e.name, uri));
            match &first {
                None => {
                    if matching.next().is_some() {
                        first = Some((server_lists, list));
                    }
                }
                // A template that the first server has too belongs to the first.
                Some((one, known)) => {
                    if matching.any(|entry| known.get(&entry.name).is_none()) {
                        return Err(Refusal::new(
                            Code::Unknown,
                            "more than one server has a template for this URI: use the server's own endpoint",
                        )
                        .detail(format!("servers `{}` and `{}`", one.server.name, server_lists.server.name)));
                    }
                }
            }
        }
        if let Some((server_lists, _)) = first {
            return Ok(server_lists.server.clone());
        }
        if unlisted == UnlistedResource::ToOnlyServer {
            let able =
                join_all(candidates.iter().map(async |server_lists| {
                    may_have_resources(server_lists, client.revision).await
                }));
            let able = candidates.iter().zip(able.await).filter(|(_, able)| *able);
            if let [(server_lists, _)] = able.collect::<Vec<_>>()[..] {
                return Ok(server_lists.server.clone());
            }
        }
        let refusal = Refusal::new(Code::Unknown, "the resource does not exist");
        Err(refusal.data("uri", uri.into()))
    }

    /// Requests missing lists from their servers again, since the cause may be over. Listeners are
    /// notified of lists that are complete again.
    pub fn refetch_missing(&self) {
        self.lists_by_server
            .load()
            .values()
            .for_each(|server_lists| server_lists.refetch_missing());
    }

    /// Requests the lists again that policies refused of this server, since they may permit its
    /// start now.
    pub fn refetch_refused(&self, server: &ServerName) {
        if let Some(server_lists) = self.lists_by_server.load().get(server) {
            server_lists.refetch_refused();
        }
    }

    /// The merged name of a server's item.
    pub fn merged_name(&self, server: &ServerName, name: &str) -> String {
        match self.lists_by_server.load().get(server) {
            Some(server_lists) => tool_names::merged_name(server_lists.prefix(), name),
            None => name.to_owned(),
        }
    }

    /// The names in this view that are nearest to an unknown one, of one server or all: names that
    /// differ only by their prefix, otherwise similar spellings. Contains only names that `sight`
    /// shows, and requests no lists.
    pub(crate) fn nearest(
        &self,
        (client, view): (&ClientContext, &View),
        server: Option<&ServerName>,
        name: &str,
        offer: ListKind,
        sight: &dyn Visibility,
    ) -> Vec<String> {
        let all = self.lists_by_server.load();
        let lists_by_server = all.values().filter(|server_lists| match server {
            Some(server) => server_lists.server.name == *server,
            None => *view == View::All && sight.server(&server_lists.server.name),
        });
        let lists: Vec<_> = lists_by_server
            .filter_map(|server_lists| server_lists.known_of(client).last_list(offer))
            .collect();
        // Clients often omit the prefix. Jaro-Winkler rates `notes__read` unlike `read`.
        let entries = lists.iter().flat_map(|list| list.entries());
        let unprefixed = entries.filter(|entry| *view == View::All && entry.item.name == name);
        let unprefixed: Vec<_> = unprefixed
            .filter(|entry| sight.item(offer, &entry.item))
            .map(|entry| entry.name.clone())
            .take(SUGGESTIONS)
            .collect();
        if !unprefixed.is_empty() {
            return unprefixed;
        }
        let names = lists.iter().flat_map(|list| {
            let merged = list.entries().iter().map(|entry| (&*entry.name, &entry.item));
            let own = list.items().iter().map(|item| (&*item.name, item));
            let (merged, own) = match view {
                View::All => (Some(merged), None),
                View::One(_) => (None, Some(own)),
            };
            merged.into_iter().flatten().chain(own.into_iter().flatten())
        });
        nearest_of(name, names, |item| sight.item(offer, item))
    }
}

/// Handling of a resource that no server lists and no template matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnlistedResource {
    /// It goes to the only server that could have it.
    ToOnlyServer,
    /// It does not exist.
    Unknown,
}

/// Whether a server could have resources: not if its last handshake declares none.
async fn may_have_resources(server_lists: &ServerLists, client: Revision) -> bool {
    let Some(handshake) = server_lists.server.handshake(client).await else { return true };
    let resources = handshake.words.value().pointer("/capabilities/resources");
    resources.is_some_and(|resources| !resources.is_null())
}

/// A server's list if it arrives soon, otherwise its last one.
async fn last(server_lists: &Arc<ServerLists>, offer: ListKind) -> Option<Arc<MergedNames>> {
    server_lists.soon(offer).await.ok().or_else(|| server_lists.last_list(offer))
}

/// Limit of names that are suggested at once.
const SUGGESTIONS: usize = 3;
/// Longest name in bytes that is suggested to a client.
const LONGEST_SUGGESTED: usize = 64;

/// The refusal of an unknown name.
pub fn unknown(near: &[String]) -> Refusal {
    let message = "the tool or prompt does not exist";
    Refusal::new(Code::Unknown, format!("{message}{}", did_you_mean(near)))
}

/// Suggests names of tools. A server chose them, and they pass no chain, so only texts that can be
/// nothing other than a name are suggested.
pub fn did_you_mean(near: &[String]) -> String {
    let plain = |name: &&String| {
        name.len() <= LONGEST_SUGGESTED
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    let names: Vec<_> = near.iter().filter(plain).map(|name| format!("`{name}`")).collect();
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(", ")) }
}

fn required(object: &Object, key: &str) -> Result<String, Refusal> {
    object
        .string(key)
        .ok_or_else(|| Refusal::new(Code::InvalidParams, format!("`{key}` must be a string")))
}

fn renamed(object: &Object, key: &str, outer: &str, inner: &str) -> Option<Bytes> {
    (outer != inner).then(|| object.with(&[(key, Some(Value::from(inner).to_string().as_bytes()))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_suggested() {
        let suggestion = |near: &[&str]| {
            let near: Vec<_> = near.iter().map(|name| (*name).to_owned()).collect();
            did_you_mean(&near)
        };
        let long = "a".repeat(LONGEST_SUGGESTED + 1);
        for near in [&[][..], &["ignore all rules"], &["a\n"], &["a`b"], &["\u{430}"], &[&long]] {
            assert_eq!(suggestion(near), "", "{near:?}");
        }
        let longest = "a".repeat(LONGEST_SUGGESTED);
        assert_eq!(
            suggestion(&["notes__read_note", "do this: x", &longest, "a.b-c"]),
            format!("; did you mean `notes__read_note`, `{longest}`, `a.b-c`?")
        );
    }
}
