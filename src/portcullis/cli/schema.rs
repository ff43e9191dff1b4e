//! `portcullis schema`: prints the schemas that other tools read.

use super::{Context, Exit, Reports};

#[derive(Debug, clap::Args)]
pub struct Args {
    what: SchemaKind,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SchemaKind {
    /// `portcullis.toml`, as JSON Schema
    Config,
    /// The records of the audit log, as JSON Schema
    Audit,
    /// The Cedar schema of policies, with the actions of the config's typed tools
    Cedar,
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    match args.what {
        SchemaKind::Config => ctx.json(&schemars::schema_for!(portcullis_config::Config))?,
        SchemaKind::Audit => ctx.json(&schemars::schema_for!(portcullis_audit::record::Entry))?,
        // Names of tools in the schema are escaped.
        SchemaKind::Cedar if ctx.config.exists() => {
            let loaded = ctx.load()?;
            let schema = portcullis_policy::schema(
                portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir)
                    .paths(),
                &loaded.base,
            );
            ctx.verbatim(&schema.map_err(|diagnostics| {
                let findings = diagnostics.findings().iter().cloned();
                Reports(findings.map(|finding| Box::new(finding) as _).collect())
            })?)?;
        }
        SchemaKind::Cedar => ctx.verbatim(portcullis_policy::SCHEMA)?,
    }
    Ok(Exit::Ok)
}
