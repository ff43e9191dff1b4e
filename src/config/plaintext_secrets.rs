//! Secrets that stand in an entry as they are, found before others get to read it.

use reqwest::Url;

use portcullis_upstream::config::Server;

use super::{Loaded, checks::looks_secret};
use portcullis_catalog::{argument_holds_secret, holds_key, url_holds_secret};
use portcullis_foundation::json_pointer::child;
use portcullis_protocol::names::ServerName;

/// What may be a secret, and stands in plain text.
#[derive(Debug)]
pub struct PlaintextSecret {
    /// Where it stands, as a JSON pointer.
    pub pointer: String,
    /// What it is, and what to do about it. Never the value.
    pub what: String,
}

impl Loaded {
    /// What of a server's entry may be a secret in plain text: in `env`, in `command`, in `url`. Whatever
    /// hands an entry to others asks this first, and does not if there is any. It finds more than what
    /// `check` warns of: there, a secret is at least on the machine to which it belongs.
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
                let what =
                    "an argument looks like a secret: hand it over under `secrets`".to_owned();
                found.push(PlaintextSecret { pointer: format!("{at}/command/{nth}"), what });
            }
            before = Some(word);
        }
        found
    }
}

fn of_url(url: &str) -> Option<&'static str> {
    if url.contains('?') {
        return Some(
            "what stands behind `?` in a URL may be a secret: send it in a header, under `headers`",
        );
    }
    Url::parse(url).is_ok_and(|url| url_holds_secret(&url)).then_some(
        "the path of this URL looks as if it had a key in it, and every reader of the URL has the key",
    )
}
