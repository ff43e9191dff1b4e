//! `portcullis plugin build`: builds the component of a project.

use std::path::PathBuf;

use super::print_lines;
use crate::{
    cli::{Context, Exit, Reports},
    plugin_dev,
};
use portcullis_plugin_host::signature_path;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Build {
    /// The project's folder
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

/// Runs the verb.
pub fn build(options: &Build, ctx: &Context) -> anyhow::Result<Exit> {
    let built = plugin_dev::build(&options.folder).map_err(|wrong| Reports(vec![wrong]))?;
    if ctx.is_json() {
        ctx.json(&built)?;
        return Ok(Exit::Ok);
    }
    ctx.line(format!("{} {}", built.name, built.version))?;
    ctx.line(format!("  path      {}", built.path.display()))?;
    ctx.line(format!("  size      {} bytes", built.bytes))?;
    ctx.line(format!("  sha256    {}", built.sha256))?;
    print_lines(ctx, &built.config, &built.policies)?;
    let signature = signature_path(&built.path);
    if signature.exists() {
        ctx.note(format_args!(
            "{} belongs to another file: sign this one again",
            signature.display()
        ));
    }
    Ok(Exit::Ok)
}
