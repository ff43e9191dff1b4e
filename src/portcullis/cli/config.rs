//! `portcullis config`: single values of the config.

use serde_json::{Value, json};

use super::{Context, Exit};
use crate::manage::config_values;

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Print the value of a key, or its default
    Get {
        /// The key, with dots: `servers.git.call-timeout-s`
        key: String,
    },
    /// Set a key, if the config passes its checks with the value
    Set {
        /// The key, with dots: `servers.git.call-timeout-s`
        key: String,
        /// The value, as in TOML; text needs no quotes
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
}

/// Runs the verb.
pub async fn run(verb: Verb, ctx: &Context) -> anyhow::Result<Exit> {
    match verb {
        Verb::Get { key } => match config_values::get(&ctx.load()?, &key)? {
            Some(value) if ctx.is_json() => ctx.json(&value)?,
            Some(Value::String(text)) => ctx.line(text)?,
            Some(value) if value.is_object() || value.is_array() => ctx.json(&value)?,
            Some(value) => ctx.line(value)?,
            None => {
                ctx.note(format_args!("`{key}` is not set, and has no default"));
                return Ok(Exit::Failure);
            }
        },
        Verb::Set { key, value } => {
            // An invalid config is never changed.
            ctx.load()?;
            let changed = config_values::set(&ctx.config, &key, &value)?;
            if ctx.is_json() {
                ctx.json(&json!({ "key": key, "changed": changed }))?;
            } else if changed {
                ctx.note(format_args!("`{key}` is set in {}", ctx.config.display()));
            } else {
                ctx.note(format_args!("`{key}` has this value already"));
            }
        }
    }
    Ok(Exit::Ok)
}
