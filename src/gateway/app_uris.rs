//! URIs of MCP Apps (`ui://…`) at the endpoint of all servers.
//!
//! An App is an HTML page that a client shows for a tool, and the tool names it by its URI. Servers
//! choose these URIs, and several may choose the same one. A client must not show the page of one
//! server for the tool of another, so at the endpoint of all servers each such URI has its server's
//! name: `ui://SERVER/REST` stands for `ui://REST` of that server.
//!
//! # Invariants
//! - No `ui://` URI at the endpoint of all servers belongs to more than one server.
//! - Policies, records and servers see the server's own URI.

use bytes::Bytes;
use serde_json::Value;

use portcullis_protocol::{
    codec::Object,
    exchange::{Method, View},
    names::ServerName,
};

const SCHEME: &str = "ui://";
/// Members of a tool's `_meta` that name its App: an earlier form, and that of another client.
const FLAT: [&str; 2] = ["ui/resourceUri", "openai/outputTemplate"];

/// The URI at the endpoint of all servers; `None` if it is not that of an App.
pub fn scoped(server: &ServerName, uri: &str) -> Option<String> {
    Some(format!("{SCHEME}{server}/{}", uri.strip_prefix(SCHEME)?))
}

/// The server and its own URI, for a URI of an App at the endpoint of all servers. `Some(None)` if
/// no server can have it, `None` if it is not the URI of an App.
pub fn parse(view: &View, uri: &str) -> Option<Option<(ServerName, String)>> {
    let rest = uri.strip_prefix(SCHEME).filter(|_| *view == View::All)?;
    Some(
        rest.split_once('/')
            .and_then(|(server, rest)| Some((server.parse().ok()?, format!("{SCHEME}{rest}")))),
    )
}

/// A tool's definition with the scoped URI of its App; `None` if it has no App.
pub fn tool_with_scoped_app(server: &ServerName, definition: &Object) -> Option<Bytes> {
    let meta = definition.object("_meta")?;
    let text = |uri: String| scoped(server, &uri).map(|uri| Value::from(uri).to_string());
    let ui = meta.object("ui").and_then(|ui| {
        let uri = text(ui.string("resourceUri")?)?;
        Some(ui.with(&[("resourceUri", Some(uri.as_bytes()))]))
    });
    let flat = FLAT.map(|key| (key, meta.string(key).and_then(text)));
    let edits: Vec<(&str, Option<&[u8]>)> = ui
        .as_ref()
        .map(|ui| ("ui", Some(&ui[..])))
        .into_iter()
        .chain(flat.iter().filter_map(|(key, uri)| Some((*key, Some(uri.as_ref()?.as_bytes())))))
        .collect();
    if edits.is_empty() {
        return None;
    }
    let meta = meta.with(&edits);
    Some(definition.with(&[("_meta", Some(&meta))]))
}

/// A notification for a client, with the scoped URI if it is about an App.
pub fn notice(view: &View, server: &ServerName, method: &Method, text: Bytes) -> Bytes {
    if method.as_str() != Method::UPDATED || *view != View::All {
        return text;
    }
    let edited = || {
        let message = Object::parse(text.clone()).ok()?;
        let params = message.object("params")?;
        let uri = Value::from(scoped(server, &params.string("uri")?)?).to_string();
        let params = params.with(&[("uri", Some(uri.as_bytes()))]);
        Some(message.with(&[("params", Some(&params))]))
    };
    edited().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerName {
        "maps".parse().unwrap()
    }

    #[test]
    fn scoped_uris_lead_back_to_their_server() {
        for uri in ["ui://view/main.html", "ui://maps/x", "ui://", "ui:///x", "ui://a b"] {
            let scoped = scoped(&server(), uri).unwrap();
            assert_eq!(parse(&View::All, &scoped), Some(Some((server(), uri.to_owned()))));
            assert_eq!(parse(&View::One(server()), &scoped), None);
        }
        assert_eq!(scoped(&server(), "file:///x"), None);
        assert_eq!(parse(&View::All, "file:///x"), None);
        for uri in ["ui://", "ui://maps", "ui://No Server/x"] {
            assert_eq!(parse(&View::All, uri), Some(None), "{uri}");
        }
    }

    #[test]
    fn only_the_uris_of_a_tool_change() {
        let tool = |meta: &str| {
            let text = format!(r#"{{"name": "show",  "_meta": {meta}, "x": 1.0}}"#);
            let object = Object::parse(Bytes::from(text)).unwrap();
            tool_with_scoped_app(&server(), &object)
                .map(|text| String::from_utf8(text.to_vec()).unwrap())
        };
        assert_eq!(
            tool(r#"{"ui": {"resourceUri": "ui://v/a", "visibility": ["app"]}, "ui/resourceUri":"ui://v/a", "k": 1e0}"#)
                .unwrap(),
            r#"{"name": "show",  "_meta": {"ui": {"resourceUri": "ui://maps/v/a", "visibility": ["app"]}, "ui/resourceUri":"ui://maps/v/a", "k": 1e0}, "x": 1.0}"#
        );
        for meta in [r#"{"ui": {"resourceUri": "https://x"}}"#, r#"{"ui": 1}"#, "{}", "[]"] {
            assert_eq!(tool(meta), None, "{meta}");
        }
    }
}
