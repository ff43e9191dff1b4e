//! Finds secrets in plain text in an entry before the entry is shared.

use reqwest::Url;

use portcullis_upstream::config::Server;

use super::{Loaded, checks::looks_secret};
use portcullis_catalog::{argument_holds_secret, holds_key, url_holds_secret};
use portcullis_foundation::json_pointer::child;
use portcullis_protocol::names::ServerName;

/// Possible secret in plain text.
#[derive(Debug)]
pub struct PlaintextSecret {
    /// JSON pointer of its position.
    pub pointer: String,
    /// Description and remedy. Never contains the value.
    pub what: String,
}

impl Loaded {
    /// Possible secrets in plain text in a server's entry: in `env`, `command` and `url`. Commands
    /// that share an entry check this first, and refuse if there are any. It is stricter than the
    /// warnings of `check`, where a secret is at least on the machine that it belongs to.
    pub fn literals(&self, name: &ServerName, server: &Server) -> Vec<PlaintextSecret> {
        let at = child("/servers", name.as_str());
        let mut found = Vec::new();
        for (variable, value) in &server.env {
            if looks_secret(variable, value) || holds_key(value) {
                let pointer = child(&child(&at, "env"), variable);
                let what = format!("`{variable}` looks like a secret: write it under `secrets`");
                found.push(PlaintextSecret { pointer, what });
            }
        }
        if let Some(url) = &server.url
            && let Some(what) = of_url(url)
        {
            found.push(PlaintextSecret { pointer: child(&at, "url"), what: what.to_owned() });
        }
        let mut before = None;
        for (nth, word) in server.command.iter().flatten().enumerate() {
            if argument_holds_secret(before, word) {
                let what = "an argument looks like a secret: deliver it with `secrets`".to_owned();
                found.push(PlaintextSecret { pointer: format!("{at}/command/{nth}"), what });
            }
            before = Some(word);
        }
        found
    }
}

fn of_url(url: &str) -> Option<&'static str> {
    if url.contains('?') {
        return Some("the query of a URL may be a secret: send it in a header, with `headers`");
    }
    Url::parse(url).is_ok_and(|url| url_holds_secret(&url)).then_some(
        "the path of this URL seems to contain a key, which every reader of the URL would get",
    )
}
