//! Refuses calls whose arguments hold the marker of the operator's `config = { marker = "…" }`.

use portcullis_plugin::{Fault, Manifest, Message, Phase, Plugin, Verdict, json, manifest};
use serde::Deserialize;

#[derive(Deserialize)]
struct MyPlugin {
    marker: String,
}

portcullis_plugin::export!(MyPlugin);

impl Plugin for MyPlugin {
    fn describe() -> Manifest {
        manifest!()
            .config_schema(include_str!("config.schema.json"))
            .on("tools/call", Phase::Request)
    }

    fn inspect(&mut self, message: &Message) -> Result<Verdict, Fault> {
        // Read, not searched: JSON has many ways to write one text.
        let mut strings = json::strings(message.arguments());
        Ok(match strings.any(|string| string.text.contains(&self.marker)) {
            true => Verdict::refuse("marker", "the arguments hold a marker that must not leave"),
            false => Verdict::pass(),
        })
    }
}
