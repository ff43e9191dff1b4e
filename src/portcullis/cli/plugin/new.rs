//! `portcullis plugin new`: creates a project.

use std::path::{Path, PathBuf};

use crate::{
    cli::{Context, Exit, Reports},
    plugin_dev::{self, Language},
};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct New {
    /// The plugin's name: a-z, 0-9 and `-`
    name: String,
    /// The plugin's language
    #[arg(long, value_enum)]
    lang: Language,
    /// The project's folder. Default: the plugin's name
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Runs the verb.
pub fn new(options: &New, ctx: &Context) -> anyhow::Result<Exit> {
    let New { name, lang, dir } = options;
    let folder = dir.as_deref().unwrap_or(Path::new(name));
    let written = plugin_dev::new(*lang, name, folder);
    let written = written.map_err(|failed| Reports(vec![Box::new(failed)]))?;
    if ctx.is_json() {
        ctx.json(&written)?;
        return Ok(Exit::Ok);
    }
    for path in &written {
        ctx.line(format!("wrote {}", path.display()))?;
    }
    let folder = folder.display();
    ctx.note(format_args!("now: portcullis plugin build {folder}"));
    ctx.note(format_args!("then: portcullis plugin test {folder}"));
    Ok(Exit::Ok)
}
