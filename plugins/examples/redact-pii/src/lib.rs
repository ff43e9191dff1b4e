//! Replaces personal data in results of tools, resources and prompts by what it is (`[email]`), and
//! refuses calls whose arguments hold the marker of the operator's `config = { marker = "…" }`.

mod find;

use std::collections::BTreeMap;

use find::Kind;
use portcullis_plugin::{Fault, Manifest, Message, Phase, Plugin, Verdict, json, manifest};
use serde::Deserialize;

#[derive(Deserialize)]
struct RedactPii {
    #[serde(default = "usual")]
    redact: Vec<Kind>,
    marker: Option<String>,
}

/// An address of the internet is mostly what a tool was asked for.
fn usual() -> Vec<Kind> {
    vec![Kind::Email, Kind::Phone, Kind::Iban, Kind::Card]
}

portcullis_plugin::export!(RedactPii);

impl Plugin for RedactPii {
    fn describe() -> Manifest {
        manifest!()
            .config_schema(include_str!("config.schema.json"))
            .on("tools/call", Phase::Request)
            .on("tools/call", Phase::Response)
            .on("resources/read", Phase::Response)
            .on("prompts/get", Phase::Response)
    }

    fn inspect(&mut self, message: &Message) -> Result<Verdict, Fault> {
        Ok(match message.phase {
            Phase::Request => self.request(message),
            Phase::Response => self.response(message),
        })
    }
}

impl RedactPii {
    fn request(&self, message: &Message) -> Verdict {
        let Some(marker) = &self.marker else { return Verdict::pass() };
        match json::strings(message.arguments()).any(|string| string.text.contains(marker)) {
            true => Verdict::refuse("marker", "the arguments hold a marker that must not leave"),
            false => Verdict::pass(),
        }
    }

    fn response(&self, message: &Message) -> Verdict {
        let mut found = BTreeMap::new();
        let payload = json::rewrite(&message.payload, |string| {
            let mut new = self.without(&string.text, &mut found)?;
            if string.is_key {
                // Two keys that were replaced must not become one.
                let all: usize = found.values().sum();
                new = format!("{new} {all}");
            }
            Some(new)
        });
        let Some(payload) = payload else { return Verdict::pass() };
        let verdict = Verdict::replace(payload).label("pii");
        found.iter().fold(verdict, |verdict, (kind, count)| {
            verdict.report(kind.name(), &format!("replaced {count}"))
        })
    }

    /// The text without personal data, if it has some.
    fn without(&self, text: &str, found: &mut BTreeMap<Kind, usize>) -> Option<String> {
        let all = find::all(text, &self.redact);
        if all.is_empty() {
            return None;
        }
        let (mut out, mut done) = (String::with_capacity(text.len()), 0);
        for (place, kind) in all {
            out.push_str(&text[done..place.start]);
            out.push('[');
            out.push_str(kind.name());
            out.push(']');
            done = place.end;
            *found.entry(kind).or_default() += 1;
        }
        out.push_str(&text[done..]);
        Some(out)
    }
}
