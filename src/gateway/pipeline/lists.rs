//! Pages of the merged lists, and suggestions for unknown names.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;

use super::builtin_methods::BuiltinMethods;
use crate::{
    router::{self, Cursor, PageLimits},
    stages::ClientContext,
};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
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
        let mut text =
            BytesMut::with_capacity(page.items.iter().map(|i| i.len() + 1).sum::<usize>() + 999);
        text.put_slice(format!("{{\"{}\":[", offer.member()).as_bytes());
        for (at, item) in page.items.iter().enumerate() {
            if at > 0 {
                text.put_u8(b',');
            }
            text.put_slice(item);
        }
        text.put_u8(b']');
        if let Some(next) = page.next {
            let failed = |why: String| {
                Refusal::new(Code::InterceptorFault, "the list cannot be continued").detail(why)
            };
            let mark = serde_json::to_vec(&next).map_err(|error| failed(error.to_string()))?;
            let cursor = self
                .seal
                .seal(PURPOSE, &bound, &mark, CURSOR)
                .map_err(|error| failed(error.to_string()))?;
            text.put_slice(format!(",\"nextCursor\":\"{cursor}\"").as_bytes());
        }
        if exchange.revision.is_modern() {
            text.put_slice(br#","resultType":"complete","ttlMs":0,"cacheScope":"private""#);
        }
        text.put_u8(b'}');
        Ok(text.freeze())
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
