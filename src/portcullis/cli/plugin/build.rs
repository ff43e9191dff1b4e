//! `portcullis plugin build`: builds the component of a project.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{print_lines, test};
use crate::{
    cli::{Context, Exit, Reports, Usage},
    plugin_dev::{self, SourceWatcher},
};
use portcullis_plugin_host::signature_path;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Build {
    /// The project's folder
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
    /// Build again after each change of a source, and run the test cases, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Runs the verb.
pub async fn build(options: &Build, ctx: &Context) -> anyhow::Result<Exit> {
    if !options.watch {
        return once(options, ctx);
    }
    if ctx.is_json() {
        return Err(Usage("`--watch` prints text only".to_owned()).into());
    }
    let folder = options.folder.display();
    let watching = || format!("cannot watch {folder}");
    let mut watcher = SourceWatcher::new(&options.folder).with_context(watching)?;
    loop {
        let sources = watcher.sources();
        match build_and_test(options, ctx).await {
            Ok(()) => {}
            Err(error) => match error.downcast::<Reports>() {
                Ok(Reports(reports)) => {
                    for report in reports {
                        ctx.report(&*report);
                    }
                }
                Err(error) => ctx.note(format!("error: {error:#}")),
            },
        }
        ctx.note(format!("waiting for a change in {folder}; Ctrl-C ends"));
        watcher.wait_for_change(&sources).await.with_context(watching)?;
    }
}

async fn build_and_test(options: &Build, ctx: &Context) -> anyhow::Result<()> {
    let progress = ctx.progress("building the plugin");
    let built = plugin_dev::build(&options.folder).map_err(|wrong| Reports(vec![wrong]))?;
    drop(progress);
    let plugin_dev::Built { name, version, path, bytes, .. } = &built;
    ctx.line(format!("built {name} {version}: {}, {bytes} bytes", path.display()))?;
    test::test(&test::Test::of_project(options.folder.clone()), ctx).await?;
    Ok(())
}

fn once(options: &Build, ctx: &Context) -> anyhow::Result<Exit> {
    let progress = ctx.progress("building the plugin");
    let built = plugin_dev::build(&options.folder).map_err(|wrong| Reports(vec![wrong]))?;
    drop(progress);
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
