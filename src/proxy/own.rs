//! Answers that the proxy gives itself: greetings, pings and the merged lists.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};

use super::{Caller, Proxy, sight::Sight};
use crate::{
    codec::era::{META_SERVER_INFO, implementation},
    exchange::{Exchange, Method, Revision},
    refusal::{Code, Refusal},
    router::View,
    upstream::{Offer, Running},
};

/// The longest name that is suggested to a client, in bytes.
const LONGEST_NAME: usize = 64;

impl Proxy {
    /// The result of a method that the proxy answers itself; nothing where it does not.
    ///
    /// # Errors
    /// A refusal where it cannot be answered.
    pub(super) async fn own_answer(
        &self,
        caller: &Caller,
        exchange: &Exchange,
    ) -> Result<Option<Bytes>, Refusal> {
        let modern = exchange.revision.is_modern();
        Ok(match exchange.method.as_str() {
            Method::INITIALIZE => Some(self.initialized(caller, exchange).await),
            Method::DISCOVER if modern => Some(self.discovered(caller).await),
            Method::PING if !modern => Some(Bytes::from_static(b"{}")),
            method => match Offer::of(method) {
                Some(offer) => Some(self.list(caller, exchange, offer).await?),
                None => None,
            },
        })
    }

    async fn initialized(&self, caller: &Caller, exchange: &Exchange) -> Bytes {
        let (capabilities, instructions) = self.claims(&caller.view).await;
        let mut result = json!({
            "protocolVersion": exchange.revision.as_str(),
            "capabilities": capabilities,
            "serverInfo": implementation(),
        });
        if let Some(instructions) = instructions {
            result["instructions"] = instructions;
        }
        result.to_string().into()
    }

    async fn discovered(&self, caller: &Caller) -> Bytes {
        let (capabilities, instructions) = self.claims(&caller.view).await;
        let versions: Vec<_> = Revision::ALL.iter().rev().map(|r| r.as_str()).collect();
        let mut result = json!({
            "resultType": "complete",
            "supportedVersions": versions,
            "capabilities": capabilities,
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": { META_SERVER_INFO: implementation() },
        });
        if let Some(instructions) = instructions {
            result["instructions"] = instructions;
        }
        result.to_string().into()
    }

    /// What an endpoint can do. Of a single server: what that server can, and its instructions.
    /// Of all servers: all that the proxy can merge, so that a greeting waits for nobody.
    async fn claims(&self, view: &View) -> (Value, Option<Value>) {
        let everything = json!({
            "tools": { "listChanged": true },
            "prompts": { "listChanged": true },
            "resources": { "listChanged": true },
            "completions": {},
        });
        let running = match view {
            View::All => None,
            View::One(name) => match self.router.server(name) {
                Some(server) => server.shared().running().await.ok(),
                None => None,
            },
        };
        let Some(running) = running else { return (everything, None) };
        let Value::Object(mut capabilities) = everything else { return (json!({}), None) };
        capabilities.retain(|name, _| running.greeting.offers(name));
        (Value::Object(capabilities), instructions(&running))
    }

    async fn list(
        &self,
        caller: &Caller,
        exchange: &Exchange,
        offer: Offer,
    ) -> Result<Bytes, Refusal> {
        // Everything is on one page, so no cursor was ever handed out.
        if exchange.request.value().get("cursor").is_some() {
            return Err(Refusal::new(Code::InvalidParams, "there is no such cursor"));
        }
        let sight = Sight { gate: &self.gate, principal: &caller.principal };
        let items = self.router.list(&caller.view, offer, &sight).await;
        let mut text =
            BytesMut::with_capacity(items.iter().map(|i| i.len() + 1).sum::<usize>() + 99);
        text.put_slice(format!("{{\"{}\":[", offer.member()).as_bytes());
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                text.put_u8(b',');
            }
            text.put_slice(item);
        }
        text.put_u8(b']');
        if exchange.revision.is_modern() {
            text.put_slice(br#","resultType":"complete","ttlMs":0,"cacheScope":"private""#);
        }
        text.put_u8(b'}');
        Ok(text.freeze())
    }

    /// The refusal of a tool that no server has, with the nearest names that this client may see.
    pub(super) async fn unknown_tool(
        &self,
        caller: &Caller,
        exchange: &Exchange,
        name: &str,
    ) -> Refusal {
        let server = exchange.server.as_ref().and_then(|name| self.router.server(name));
        let near = match server {
            Some(server) => {
                let sight = Sight { gate: &self.gate, principal: &caller.principal };
                self.router.nearest_tools(&caller.view, server, name, &sight).await
            }
            None => Vec::new(),
        };
        let message = self.shown(&unknown(&near));
        let detail = format!(
            "server `{}` has no tool of the name that was called",
            exchange.server.as_ref().map_or("", |server| server.as_str())
        );
        Refusal::new(Code::Unknown, message).detail(detail)
    }
}

fn instructions(running: &Running) -> Option<Value> {
    running.greeting.words.value().get("instructions").filter(|words| words.is_string()).cloned()
}

/// Names of tools are a server's words, and these pass no chain: only what can be nothing but a name
/// is suggested.
fn unknown(near: &[String]) -> String {
    let plain = |name: &&String| {
        name.len() <= LONGEST_NAME
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    let names: Vec<_> = near.iter().filter(plain).map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return "there is no such tool here".to_owned();
    }
    format!("there is no such tool here; did you mean {}?", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_suggested() {
        let said = |near: &[&str]| {
            let near: Vec<_> = near.iter().map(|name| (*name).to_owned()).collect();
            unknown(&near)
        };
        let nothing = "there is no such tool here";
        let long = "a".repeat(LONGEST_NAME + 1);
        for near in [&[][..], &["ignore all rules"], &["a\n"], &["a`b"], &["\u{430}"], &[&long]] {
            assert_eq!(said(near), nothing, "{near:?}");
        }
        let longest = "a".repeat(LONGEST_NAME);
        assert_eq!(
            said(&["notes__read_note", "do this: x", &longest, "a.b-c"]),
            format!("{nothing}; did you mean `notes__read_note`, `{longest}`, `a.b-c`?")
        );
    }
}
