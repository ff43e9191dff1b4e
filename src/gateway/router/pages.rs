//! Pages of merged lists.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Router, Visibility, merged_names::MergedNames, server_lists::ServerLists};
use crate::{app_uris, stages::ClientContext};
use portcullis_protocol::{
    codec::{Object, may_have},
    exchange::{Definition, View},
    names::ServerName,
    refusal::Refusal,
};
use portcullis_upstream::{ListKind, ListMembers};

/// Limits of a page. One item always fits.
#[derive(Debug, Clone, Copy)]
pub struct PageLimits {
    pub items: usize,
    pub bytes: usize,
}

/// A part of a list, in the order of the config and then of each server.
#[derive(Debug, Default)]
pub struct Page {
    /// Each item's text.
    pub items: Vec<Bytes>,
    /// Start of the next page, if there is one.
    pub next: Option<Cursor>,
    /// The other members of the list, if it has the items of one server only.
    pub members: Option<ListMembers>,
    /// Time in milliseconds for which the list counts as fresh: the least of its servers.
    pub ttl_ms: u64,
}

/// The last item of a page. Changes before it do not move the items after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    #[serde(rename = "s")]
    server: ServerName,
    #[serde(rename = "n")]
    name: String,
    /// Its index, in case it is gone.
    #[serde(rename = "a")]
    at: usize,
}

/// One server's part of a list.
struct Part {
    server_lists: Arc<ServerLists>,
    /// Its index in the config.
    at: usize,
    catalog: Arc<MergedNames>,
    /// Whether the server did not return its list.
    is_missing: bool,
}

/// Longest time in milliseconds for which a client may keep a list: policies change what it may see,
/// and the proxy's copy of the list has an age already.
const MAX_TTL_MS: u64 = 60_000;

impl Part {
    /// Time in milliseconds for which the part counts as fresh; `None` if the server has no such
    /// list. At most [`MAX_TTL_MS`].
    fn ttl_ms(&self) -> Option<u64> {
        if self.is_missing {
            return Some(0);
        }
        self.catalog.items().members().map(|members| members.ttl_ms.min(MAX_TTL_MS))
    }
}

impl Router {
    /// A page of a list in this view: each visible item's text, with merged names if the view has
    /// prefixes. Of several servers, those that fail are left out.
    ///
    /// # Errors
    /// If the view's only server does not return its list.
    pub(crate) async fn list(
        &self,
        (client, view): (&ClientContext, &View),
        offer: ListKind,
        sight: &dyn Visibility,
        after: Option<&Cursor>,
        room: PageLimits,
    ) -> Result<Page, Refusal> {
        let lists_by_server = self.lists_by_server.load_full();
        let parts = match view {
            View::One(name) => {
                let server_lists = self.server_lists(name)?.of(client, offer).await;
                let catalog = server_lists.here(offer).await;
                let catalog = catalog.map_err(|failure| failure.refusal(name))?;
                vec![Part { server_lists, at: 0, catalog, is_missing: false }]
            }
            View::All => {
                let seen = lists_by_server.values().enumerate();
                let seen = seen.filter(|(_, server_lists)| sight.server(&server_lists.server.name));
                join_all(seen.map(async |(at, server_lists)| {
                    let server_lists = server_lists.of(client, offer).await;
                    let catalog = server_lists.soon(offer).await;
                    let is_missing = catalog.is_err();
                    Part { server_lists, at, catalog: catalog.unwrap_or_default(), is_missing }
                }))
                .await
            }
        };
        let begin = after.map(|mark| {
            let rank = match view {
                View::One(_) => 0,
                View::All => lists_by_server.get_index_of(&mark.server).unwrap_or(usize::MAX),
            };
            (mark, rank)
        });
        let mut page = Page {
            members: match &parts[..] {
                [only] => only.catalog.items().members().cloned(),
                _ => None,
            },
            ttl_ms: parts.iter().filter_map(Part::ttl_ms).min().unwrap_or_default(),
            ..Page::default()
        };
        let mut remaining = room.bytes;
        let mut last = None;
        for part in &parts {
            let names: Vec<(&str, &Arc<Definition>)> = match view {
                View::One(_) => {
                    part.catalog.items().iter().map(|item| (&*item.name, item)).collect()
                }
                View::All => {
                    part.catalog.entries().iter().map(|entry| (&*entry.name, &entry.item)).collect()
                }
            };
            let skipped = match begin {
                Some((_, rank)) if part.at < rank => continue,
                Some((mark, rank)) if part.at == rank => names
                    .iter()
                    .position(|(name, _)| *name == mark.name)
                    .map_or(mark.at.min(names.len()), |at| at + 1),
                _ => 0,
            };
            for (at, (name, item)) in names.into_iter().enumerate().skip(skipped) {
                if !sight.item(offer, item) || self.shown_before(&parts, part, offer, name, sight) {
                    continue;
                }
                let text = match view {
                    View::All => merged_item(item, offer, name),
                    View::One(_) => item.definition.raw().clone(),
                };
                if let Some(last) = last.take()
                    && (page.items.len() >= room.items.max(1) || text.len() > remaining)
                {
                    page.next = Some(last);
                    return Ok(page);
                }
                remaining = remaining.saturating_sub(text.len());
                page.items.push(text);
                let server = part.server_lists.server.name.clone();
                last = Some(Cursor { server, name: name.to_owned(), at });
            }
        }
        Ok(page)
    }

    /// Whether a resource or a template belongs to an earlier server: the first in the config with
    /// it that this principal may use. An unavailable server keeps its last list.
    fn shown_before(
        &self,
        parts: &[Part],
        part: &Part,
        offer: ListKind,
        name: &str,
        sight: &dyn Visibility,
    ) -> bool {
        matches!(offer, ListKind::Resources | ListKind::Templates)
            && parts.iter().take_while(|earlier| earlier.at < part.at).any(|earlier| {
                let last = earlier.server_lists.last_list(offer);
                last.as_ref()
                    .and_then(|catalog| catalog.get(name))
                    .is_some_and(|item| sight.item(offer, item))
            })
    }

    /// Findings about one server's lists for the operator.
    pub fn notices(&self, server: &ServerName) -> Vec<String> {
        let Ok(server_lists) = self.server_lists(server) else { return Vec::new() };
        let lists_by_server = self.lists_by_server.load_full();
        let mut notices = server_lists.notices();
        for (offer, what) in
            [(ListKind::Resources, "resources"), (ListKind::Templates, "templates")]
        {
            let Some(own) = server_lists.last_list(offer) else { continue };
            let mut shared: HashMap<&ServerName, usize> = HashMap::new();
            let earlier =
                || lists_by_server.values().take_while(|other| other.server.name != *server);
            let earlier: Vec<_> = earlier()
                .filter_map(|other| Some((&other.server.name, other.last_list(offer)?)))
                .collect();
            for entry in own.entries() {
                if let Some((first, _)) =
                    earlier.iter().find(|(_, catalog)| catalog.get(&entry.name).is_some())
                {
                    *shared.entry(first).or_default() += 1;
                }
            }
            for (first, _) in &earlier {
                if let Some(count) = shared.get(first) {
                    notices.push(format!(
                        "{count} of its {what} are `{first}`'s in merged lists, which comes first"
                    ));
                }
            }
        }
        notices
    }
}

/// An item's text with its name in the merged list, and for a tool with the merged URI of its App.
fn merged_item(item: &Definition, offer: ListKind, name: &str) -> Bytes {
    let raw = item.definition.raw();
    let may_have_app = offer == ListKind::Tools && may_have(raw, "_meta");
    if item.name == name && !may_have_app {
        return raw.clone();
    }
    let Ok(object) = Object::parse(raw.clone()) else { return raw.clone() };
    let text = match item.name == name {
        true => raw.clone(),
        false => object.with(&[(offer.key(), Some(Value::from(name).to_string().as_bytes()))]),
    };
    if !may_have_app {
        return text;
    }
    let object = Object::parse(text.clone()).ok();
    object.and_then(|object| app_uris::tool_with_scoped_app(&item.server, &object)).unwrap_or(text)
}
