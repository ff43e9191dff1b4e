//! `portcullis schema`: prints the schemas that other tools read.

use super::{Context, Exit};

#[derive(Debug, clap::Args)]
pub struct Args {
    what: What,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum What {
    /// `portcullis.toml`, as JSON Schema
    Config,
    /// The records of the audit log, as JSON Schema
    Audit,
    /// What policies may speak of, as a Cedar schema
    Cedar,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    match args.what {
        What::Config => ctx.json(&schemars::schema_for!(crate::config::Config))?,
        What::Audit => ctx.json(&schemars::schema_for!(crate::audit::record::Entry))?,
        What::Cedar => ctx.verbatim(crate::policy::SCHEMA)?,
    }
    Ok(Exit::Ok)
}
