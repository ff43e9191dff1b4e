//! Pages of the merged lists, and suggestions for unknown names.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;

use super::builtin_methods::BuiltinMethods;
use crate::{
    router::{self, Cursor, Page, PageLimits},
    stages::ClientContext,
};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Object, era::MODERN_RESULT},
    exchange::Exchange,
    identity::Principal,
    refusal::{Code, Refusal},
};
use portcullis_upstream::ListKind;

/// Bytes of one page: more than most lists have, and small enough for every client.
const PAGE_BYTES: usize = 4 << 20;
/// Purpose that cursors are sealed for.
const PURPOSE: &str = "list-cursor";
/// Time for which a cursor is valid.
const CURSOR: Duration = Duration::from_secs(3_600);

impl BuiltinMethods {
    /// Returns a page of a list.
    ///
    /// # Errors
    /// A refusal if the cursor was not issued to this principal for this list.
    pub(super) async fn list(
        &self,
        client: &ClientContext,
        exchange: &Exchange,
        offer: ListKind,
    ) -> Result<Bytes, Refusal> {
        let bound = bound(&client.principal, &client.view, offer);
        let after = match exchange.request.value().get("cursor") {
            Some(cursor) => Some(self.mark(cursor, &bound)?),
            None => None,
        };
        let sight = self.stages.view(&client.principal);
        let room = PageLimits { items: self.page, bytes: PAGE_BYTES };
        let page =
            self.router.list((client, &client.view), offer, &sight, after.as_ref(), room).await?;
        let next = match &page.next {
            Some(next) => Some(self.cursor(next, &bound)?),
            None => None,
        };
        Ok(text(&page, offer, next.as_deref(), exchange.revision.is_modern()))
    }

    /// A sealed cursor for the page that begins after this item.
    fn cursor(&self, next: &Cursor, bound: &[u8]) -> Result<String, Refusal> {
        let failed = |why: String| {
            Refusal::new(Code::InterceptorFault, "the list cannot be continued").detail(why)
        };
        let mark = serde_json::to_vec(next).map_err(|error| failed(error.to_string()))?;
        self.seal.seal(PURPOSE, bound, &mark, CURSOR).map_err(|error| failed(error.to_string()))
    }

    /// The start of the page in an opened cursor.
    fn mark(&self, cursor: &Value, bound: &[u8]) -> Result<Cursor, Refusal> {
        let none = |why: String| {
            Refusal::new(
                Code::InvalidParams,
                "the cursor is not valid; request the list again without one",
            )
            .detail(why)
        };
        let text = cursor.as_str().ok_or_else(|| none("it is not a string".into()))?;
        let mark =
            self.seal.open(PURPOSE, bound, text).map_err(|broken| none(broken.to_string()))?;
        serde_json::from_slice(&mark).map_err(|error| none(error.to_string()))
    }

    /// The refusal of an unknown tool, with the nearest names that this client may see.
    pub(super) fn unknown_tool(
        &self,
        client: &ClientContext,
        exchange: &Exchange,
        name: &str,
    ) -> Refusal {
        let near = self.near(client, exchange, name);
        let message = format!("the tool does not exist{}", router::did_you_mean(&near));
        let detail = format!(
            "server `{}` has no tool of the name that was called",
            exchange.server.as_ref().map_or("", |server| server.as_str())
        );
        Refusal::new(Code::Unknown, self.stages.recorder.shown(&message)).detail(detail)
    }

    /// The nearest names of the same server, as they are in this view.
    fn near(&self, client: &ClientContext, exchange: &Exchange, name: &str) -> Vec<String> {
        let Some(server) = &exchange.server else { return Vec::new() };
        let sight = self.stages.view(&client.principal);
        let name = match &client.view {
            View::All => self.router.merged_name(server, name),
            View::One(_) => name.to_owned(),
        };
        self.router.nearest((client, &client.view), Some(server), &name, ListKind::Tools, &sight)
    }
}

/// The text of a page for a client of an era. Members of a single server's list are kept. What a
/// client sees depends on policies, so its list is never one for all (`cacheScope`).
fn text(page: &Page, offer: ListKind, next: Option<&str>, modern: bool) -> Bytes {
    let bytes = page.items.iter().map(|item| item.len() + 1).sum::<usize>() + 2;
    let mut items = BytesMut::with_capacity(bytes);
    items.put_u8(b'[');
    for (at, item) in page.items.iter().enumerate() {
        if at > 0 {
            items.put_u8(b',');
        }
        items.put_slice(item);
    }
    items.put_u8(b']');
    let next = next.map(|cursor| format!("\"{cursor}\""));
    let ttl_ms = page.ttl_ms.to_string();
    let mut edits: Vec<(&str, Option<&[u8]>)> = vec![
        (offer.member(), Some(&items[..])),
        ("nextCursor", next.as_ref().map(String::as_bytes)),
    ];
    let members = page.members.as_ref();
    if modern {
        edits.push(("resultType", Some(b"\"complete\"")));
        edits.push(("ttlMs", Some(ttl_ms.as_bytes())));
        edits.push(("cacheScope", Some(b"\"private\"")));
    } else if members.is_some_and(|members| members.modern) {
        edits.extend(MODERN_RESULT.map(|member| (member, None)));
    }
    let none = Object::default();
    let members = members.and_then(|members| Object::parse(members.text.clone()).ok());
    members.as_ref().unwrap_or(&none).with(&edits)
}

/// Data that a cursor is bound to: its principal and its list. No other cursor can be opened.
fn bound(principal: &Principal, view: &View, offer: ListKind) -> Vec<u8> {
    let view = match view {
        View::All => None,
        View::One(server) => Some(server.as_str()),
    };
    serde_json::json!([principal.name(), principal.verified, view, offer.method()])
        .to_string()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_upstream::ListMembers;

    fn page(members: Option<(&'static str, bool)>) -> Page {
        let members = members.map(|(text, modern)| ListMembers {
            text: Bytes::from_static(text.as_bytes()),
            modern,
            ttl_ms: 0,
        });
        let items = [r#"{"name":"a","x":1.0}"#, r#"{"name":"b"}"#]
            .map(|item| Bytes::from_static(item.as_bytes()));
        Page { items: items.into(), next: None, members, ttl_ms: 60_000 }
    }

    #[test]
    fn members_of_a_single_servers_list_are_kept() {
        const ITEMS: &str = r#""tools":[{"name":"a","x":1.0},{"name":"b"}]"#;
        let hints = r#""resultType":"complete","ttlMs":60000,"cacheScope":"private""#;
        let modern =
            r#"{"_meta":{"n":5.0},"resultType":"complete","ttlMs":9,"cacheScope":"public","x":1}"#;
        let prefix = r#"{"_meta":{"n":5.0},"resultType":"complete","ttlMs":60000,"cacheScope":"private","x":1"#;
        // A legacy server's own member of such a name says nothing to its clients of that era.
        let legacy = r#"{"_meta":{},"ttlMs":"x"}"#;
        for (members, to_modern, expected) in [
            (None, false, format!("{{{ITEMS}}}")),
            (None, true, format!("{{{ITEMS},{hints}}}")),
            (Some((modern, true)), true, format!("{prefix},{ITEMS}}}")),
            (Some((modern, true)), false, format!(r#"{{"_meta":{{"n":5.0}},"x":1,{ITEMS}}}"#)),
            (Some((legacy, false)), false, format!(r#"{{"_meta":{{}},"ttlMs":"x",{ITEMS}}}"#)),
            (
                Some((legacy, false)),
                true,
                format!(
                    r#"{{"_meta":{{}},"ttlMs":60000,{ITEMS},"resultType":"complete","cacheScope":"private"}}"#
                ),
            ),
        ] {
            let text = text(&page(members), ListKind::Tools, None, to_modern);
            assert_eq!(text, expected, "{members:?} {to_modern}");
        }
        let text = text(&page(None), ListKind::Prompts, Some("c"), false);
        assert!(text.ends_with(br#"],"nextCursor":"c"}"#), "{text:?}");
    }
}
