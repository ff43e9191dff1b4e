//! Which server owns this tool, prompt or resource; what the merged lists hold.
//!
//! INVARIANT: what is merged is named by the operator. A server's name for itself, or for its
//! tools, can neither move nor shadow what another server offers: behind the endpoint of all
//! servers every tool and prompt stands behind its server's prefix.

mod template;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use indexmap::IndexMap;
use serde_json::Value;

use crate::{
    codec::Object,
    exchange::{Definition, Method, Target},
    names::{ServerName, nearest},
    refusal::{Code, Refusal},
    upstream::{Failure, Items, Offer, Server},
};

/// What stands between a server's prefix and a name.
pub const SEPARATOR: &str = "__";

/// How long a merged list waits for one server.
const SOON: Duration = Duration::from_secs(10);

/// Which servers an endpoint shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// All, their names behind prefixes.
    All,
    /// One, its names as they are.
    One(ServerName),
}

/// Where a message goes.
pub struct Route {
    /// The server; without one the proxy answers itself.
    pub server: Option<Arc<Server>>,
    pub target: Target,
    /// `params` with names as the server knows them, where they differ from what the client sent.
    pub params: Option<Bytes>,
}

/// All servers of the config, in its order.
pub struct Router {
    servers: IndexMap<ServerName, Arc<Server>>,
}

/// Answers whether this principal could use something, before a server is started to look.
pub trait Sight: Sync {
    /// A tool of which nothing is known but its name.
    fn tool(&self, server: &ServerName, name: &str) -> bool;
    fn prompt(&self, server: &ServerName, name: &str) -> bool;
    fn resource(&self, server: &ServerName, uri: &str) -> bool;
    /// A server's lists, among those of all servers.
    fn server(&self, server: &ServerName) -> bool;
    /// An item of a list.
    fn item(&self, offer: Offer, definition: &Definition) -> bool;
}

impl Router {
    /// A router over these servers.
    pub fn new(servers: impl IntoIterator<Item = Arc<Server>>) -> Self {
        Self { servers: servers.into_iter().map(|s| (s.name.clone(), s)).collect() }
    }

    /// The servers that a view shows.
    pub fn servers(&self, view: &View) -> Vec<Arc<Server>> {
        match view {
            View::All => self.servers.values().cloned().collect(),
            View::One(name) => self.servers.get(name).cloned().into_iter().collect(),
        }
    }

    /// One server.
    pub fn server(&self, name: &ServerName) -> Option<&Arc<Server>> {
        self.servers.get(name)
    }

    /// Finds where a request goes. A server is started to look for a tool only where `sight` says
    /// that the principal could use it: who may do nothing starts nothing.
    ///
    /// # Errors
    /// A refusal where the message names nothing that is there.
    pub async fn route(
        &self,
        view: &View,
        method: &Method,
        params: &Bytes,
        sight: &dyn Sight,
    ) -> Result<Route, Refusal> {
        let object = || {
            Object::parse(params.clone())
                .map_err(|flaw| Refusal::new(Code::InvalidParams, flaw.to_string()))
        };
        match method.as_str() {
            Method::TOOLS_CALL => {
                let object = object()?;
                if object.get("arguments").is_some_and(|a| a.first() != Some(&b'{')) {
                    return Err(Refusal::new(Code::InvalidParams, "`arguments` must be an object"));
                }
                let outer = required(&object, "name")?;
                let (server, name) = self.owner(view, &outer, Offer::Tools, sight).await?;
                let tool = if sight.tool(&server.name, &name) {
                    find(&server, Offer::Tools, &name).await?
                } else {
                    None
                };
                let params = renamed(&object, "name", &outer, &name);
                Ok(Route { server: Some(server), target: Target::Tool { name, tool }, params })
            }
            Method::PROMPTS_GET => {
                let object = object()?;
                let outer = required(&object, "name")?;
                let (server, name) = self.owner(view, &outer, Offer::Prompts, sight).await?;
                let params = renamed(&object, "name", &outer, &name);
                Ok(Route { server: Some(server), target: Target::Prompt { name }, params })
            }
            Method::RESOURCES_READ | "resources/subscribe" | "resources/unsubscribe" => {
                let uri = required(&object()?, "uri")?;
                let server = self.holder(view, &uri, sight).await?;
                Ok(Route { server: Some(server), target: Target::Resource { uri }, params: None })
            }
            Method::COMPLETE => {
                let object = object()?;
                let reference = object
                    .object("ref")
                    .ok_or_else(|| Refusal::new(Code::InvalidParams, "`ref` must be an object"))?;
                if reference.string("type").as_deref() == Some("ref/resource") {
                    let uri = required(&reference, "uri")?;
                    let server = self.holder(view, &uri, sight).await?;
                    let target = Target::Resource { uri };
                    return Ok(Route { server: Some(server), target, params: None });
                }
                let outer = required(&reference, "name")?;
                let (server, name) = self.owner(view, &outer, Offer::Prompts, sight).await?;
                let params = renamed(&reference, "name", &outer, &name)
                    .map(|reference| object.with(&[("ref", Some(&reference))]));
                Ok(Route { server: Some(server), target: Target::Prompt { name }, params })
            }
            _ => Ok(Route {
                server: match view {
                    View::All => None,
                    View::One(name) => self.servers.get(name).cloned(),
                },
                target: Target::None,
                params: None,
            }),
        }
    }

    /// The server that a name belongs to, and the name there.
    async fn owner(
        &self,
        view: &View,
        outer: &str,
        offer: Offer,
        sight: &dyn Sight,
    ) -> Result<(Arc<Server>, String), Refusal> {
        if let View::One(name) = view {
            let server = self.servers.get(name).ok_or_else(|| unknown_server(name))?;
            return Ok((server.clone(), outer.to_owned()));
        }
        // The longest prefix wins: `a__b` may be a prefix as well as `a`.
        let owner = self
            .servers
            .values()
            .filter_map(|server| {
                let prefix = prefix(server);
                if prefix.is_empty() {
                    return None;
                }
                let inner = outer.strip_prefix(prefix)?.strip_prefix(SEPARATOR)?;
                Some((prefix.len(), server, inner))
            })
            .max_by_key(|(length, ..)| *length);
        if let Some((_, server, inner)) = owner {
            return Ok((server.clone(), inner.to_owned()));
        }
        let seen = |server: &&Arc<Server>| match offer {
            Offer::Tools => sight.tool(&server.name, outer),
            _ => sight.prompt(&server.name, outer),
        };
        let bare = self.servers.values().filter(|server| prefix(server).is_empty());
        for server in bare.filter(seen) {
            if let Ok(items) = soon(server, offer).await
                && items.iter().any(|item| item.name == outer)
            {
                return Ok((server.clone(), outer.to_owned()));
            }
        }
        Err(Refusal::new(Code::Unknown, "there is no such tool or prompt here"))
    }

    /// The server that holds a resource: the one that lists it, else the one of whose templates it
    /// is. Only servers of which the principal could read it are asked.
    async fn holder(
        &self,
        view: &View,
        uri: &str,
        sight: &dyn Sight,
    ) -> Result<Arc<Server>, Refusal> {
        if let View::One(name) = view {
            return self.servers.get(name).cloned().ok_or_else(|| unknown_server(name));
        }
        let candidates: Vec<_> =
            self.servers.values().filter(|server| sight.resource(&server.name, uri)).collect();
        for offer in [Offer::Resources, Offer::Templates] {
            let lists = join_all(candidates.iter().map(|server| soon(server, offer))).await;
            let mut holders = candidates.iter().zip(&lists).filter(|(_, items)| {
                items.as_ref().is_ok_and(|items| {
                    items.iter().any(|item| match offer {
                        Offer::Templates => item.name == uri || template::matches(&item.name, uri),
                        _ => item.name == uri,
                    })
                })
            });
            match (holders.next(), holders.next()) {
                (Some((server, _)), None) => return Ok((*server).clone()),
                (Some((one, _)), Some((other, _))) => {
                    return Err(Refusal::new(
                        Code::Unknown,
                        "more than one server has a resource of this name: use a server's own endpoint",
                    )
                    .detail(format!("servers `{}` and `{}`", one.name, other.name)));
                }
                (None, _) => {}
            }
        }
        Err(Refusal::new(Code::Unknown, "there is no such resource here").data("uri", uri.into()))
    }

    /// What a list shows in this view: each visible item's text, renamed where the view has
    /// prefixes. A server that fails is left out.
    pub async fn list(&self, view: &View, offer: Offer, sight: &dyn Sight) -> Vec<Bytes> {
        let mut servers = self.servers(view);
        if *view == View::All {
            servers.retain(|server| sight.server(&server.name));
        }
        let lists = join_all(servers.iter().map(|server| soon(server, offer))).await;
        let mut texts = Vec::new();
        for (server, items) in servers.iter().zip(lists) {
            let items = match items {
                Ok(items) => items,
                Err(failure) => {
                    left_out(server, offer, &failure);
                    continue;
                }
            };
            for item in items.iter().filter(|item| sight.item(offer, item)) {
                if *view == View::All && self.shadows(server, &item.name) {
                    tracing::warn!(server = %server.name, "an item named like another server's is left out");
                    continue;
                }
                texts.push(match (view, offer) {
                    (View::All, Offer::Tools | Offer::Prompts) => self.outward(server, item, offer),
                    _ => item.definition.raw().clone(),
                });
            }
        }
        texts
    }

    /// Whether a server without a prefix names something as if it stood behind another's.
    fn shadows(&self, server: &Server, name: &str) -> bool {
        prefix(server).is_empty()
            && self.servers.values().map(|other| prefix(other)).any(|other| {
                !other.is_empty()
                    && name.strip_prefix(other).is_some_and(|rest| rest.starts_with(SEPARATOR))
            })
    }

    fn outward(&self, server: &Server, item: &Definition, offer: Offer) -> Bytes {
        let outer = outer_name(server, &item.name);
        match Object::parse(item.definition.raw().clone()) {
            Ok(object) => {
                object.with(&[(offer.key(), Some(Value::from(outer).to_string().as_bytes()))])
            }
            Err(_) => item.definition.raw().clone(),
        }
    }

    /// The visible tools whose names are nearest to one that is not there.
    pub async fn nearest_tools(
        &self,
        view: &View,
        server: &Arc<Server>,
        name: &str,
        sight: &dyn Sight,
    ) -> Vec<String> {
        let Ok(items) = server.items(Offer::Tools).await else { return Vec::new() };
        let visible = items.iter().filter(|item| sight.item(Offer::Tools, item));
        let near = nearest(name, visible.map(|item| item.name.as_str()));
        near.into_iter()
            .map(|name| if *view == View::All { outer_name(server, &name) } else { name })
            .collect()
    }
}

/// What a server offers, if it says so soon. One that does not goes on starting, or thinking, by
/// itself: it is missing from this list, and delays it no longer.
async fn soon(server: &Arc<Server>, offer: Offer) -> Result<Items, Failure> {
    tokio::time::timeout(SOON, server.items(offer)).await.unwrap_or(Err(Failure::Timeout(SOON)))
}

fn prefix(server: &Server) -> &str {
    server.settings.prefix.as_deref().unwrap_or(server.name.as_str())
}

/// A name as the merged lists have it.
fn outer_name(server: &Server, name: &str) -> String {
    match prefix(server) {
        "" => name.to_owned(),
        prefix => format!("{prefix}{SEPARATOR}{name}"),
    }
}

async fn find(
    server: &Arc<Server>,
    offer: Offer,
    name: &str,
) -> Result<Option<Arc<Definition>>, Refusal> {
    let items = server.items(offer).await.map_err(|failure| failure.refusal(&server.name))?;
    Ok(items.iter().find(|item| item.name == name).cloned())
}

fn left_out(server: &Server, offer: Offer, failure: &Failure) {
    tracing::warn!(server = %server.name, list = offer.method(), %failure, "the server is missing from a list");
}

fn required(object: &Object, key: &str) -> Result<String, Refusal> {
    object
        .string(key)
        .ok_or_else(|| Refusal::new(Code::InvalidParams, format!("`{key}` must be a string")))
}

fn renamed(object: &Object, key: &str, outer: &str, inner: &str) -> Option<Bytes> {
    (outer != inner).then(|| object.with(&[(key, Some(Value::from(inner).to_string().as_bytes()))]))
}

fn unknown_server(name: &ServerName) -> Refusal {
    Refusal::new(Code::Unknown, format!("there is no server `{name}` here"))
}
