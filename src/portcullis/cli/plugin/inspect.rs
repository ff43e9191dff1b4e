//! `portcullis plugin inspect`: prints a plugin's metadata, requested grants and cost.

use super::{found, print_lines, settings};
use crate::{
    cli::{Context, Exit, Reports},
    plugin_dev::{self, Inspection},
};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// The component: a file, `oci://HOST/REPOSITORY:TAG` (or `@sha256:…`), or `https://…`
    #[arg(value_name = "FILE")]
    component: String,
    /// The plugin's `config` for the cost measurement, as a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    settings: String,
    /// Skip the cost measurement
    #[arg(long)]
    no_cost: bool,
}

/// Runs the verb.
pub async fn inspect(options: &Inspect, ctx: &Context) -> anyhow::Result<Exit> {
    let Inspect { component, settings: given, no_cost } = options;
    let config = settings(given)?;
    let progress = ctx.progress("looking at the plugin");
    let component = found(component, ctx).await?;
    let inspection = plugin_dev::inspect(&component, config, !no_cost).await;
    drop(progress);
    let inspection = inspection.map_err(|error| Reports(vec![error]))?;
    if ctx.is_json() {
        ctx.json(&inspection)?;
    } else {
        print(&inspection, ctx)?;
    }
    Ok(Exit::Ok)
}

fn print(inspection: &Inspection, ctx: &Context) -> anyhow::Result<()> {
    let Inspection { name, version, description, bytes, sha256, compile_ms, lifetime, .. } =
        inspection;
    ctx.line(format!("{name} {version}: {description}"))?;
    ctx.line(format!("  from      {}", inspection.path.display()))?;
    ctx.line(format!("  size      {bytes} bytes, compiled in {compile_ms} ms"))?;
    ctx.line(format!("  sha256    {sha256}"))?;
    if !inspection.signatures.is_empty() {
        let names = inspection.signatures.join(", ");
        ctx.line(format!("  signed    as it says by {names}: `plugin verify` says whether"))?;
    }
    ctx.line(format!("  lifetime  {lifetime}"))?;
    let asked = match inspection.once {
        true => "once; put it behind the entries that replace",
        false => "again where another entry replaced the payload",
    };
    ctx.line(format!("  asked     {asked}"))?;
    for hook in &inspection.hooks {
        ctx.line(format!("  hook      {} of {}", hook.phase, hook.event))?;
    }
    let list = |all: &[String]| match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(", "),
    };
    let imports: Vec<_> = inspection.imports.iter().map(|import| (*import).to_owned()).collect();
    ctx.line(format!("  imports   {}", list(&imports)))?;
    if !inspection.hosts.is_empty() {
        ctx.line(format!("  hosts     {}", list(&inspection.hosts)))?;
    }
    if !inspection.secrets.is_empty() {
        ctx.line(format!("  secrets   {}", list(&inspection.secrets)))?;
    }
    if let Some(schema) = &inspection.config_schema {
        ctx.line(format!("  config    {schema}"))?;
    }
    print_lines(ctx, &inspection.config, &inspection.policies)?;
    if let Some(why) = &inspection.unmeasured {
        ctx.line("")?;
        ctx.line(format!("its cost was not measured: {why}"))?;
        ctx.line("`--settings JSON` measures it with a `config`")?;
    }
    if !inspection.costs.is_empty() {
        ctx.line("")?;
        let rows = inspection.costs.iter().map(|cost| {
            [
                format!("{} of {}", cost.phase, cost.event),
                format!("{} KiB", cost.kib),
                format!("{:.1} µs", cost.p50_us),
                format!("{:.1} µs", cost.p99_us),
            ]
        });
        ctx.table(&["MESSAGE", "SIZE", "P50", "P99"], rows)?;
        for slope in &inspection.slopes {
            let (phase, event) = (slope.phase, &slope.event);
            ctx.line(format!("{phase} of {event}: {:.2} µs for each KiB more", slope.us))?;
        }
    }
    Ok(())
}
