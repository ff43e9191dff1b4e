//! `portcullis policy fmt`: formats policies.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Serialize;
use similar::TextDiff;

use super::{count, source};
use crate::cli::{Context, Exit, Reports, Usage};
use portcullis_policy::{Finding, Source};
use portcullis_policy_tools::{Formatted, format, format_files};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Fmt {
    /// Files and folders, instead of the config's; `-` reads standard input
    paths: Vec<PathBuf>,
    /// Show the changes without writing them
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    findings: &'a [Finding],
    files: Vec<File<'a>>,
}

#[derive(Debug, Serialize)]
struct File<'a> {
    file: &'a Path,
    changed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
}

/// Runs the verb.
pub fn fmt(Fmt { paths, check }: &Fmt, ctx: &Context) -> anyhow::Result<Exit> {
    let (formatted, findings) = match paths.as_slice() {
        [] => match source(&ctx.load()?) {
            Source::Paths(paths) => of_files(&paths),
            // Signed files are not changed.
            Source::Bundle(_) | Source::Narrowed { .. } => {
                let message = "the policies are a signed bundle: format its source files, by their \
                               paths, and sign it again";
                return Err(Usage(message.to_owned()).into());
            }
        },
        [one] if one == Path::new("-") => match of_stdin(ctx, *check)? {
            Ok(formatted) => (vec![formatted], Vec::new()),
            Err(exit) => return Ok(exit),
        },
        paths => of_files(paths),
    };
    let changed: Vec<_> = formatted.iter().filter(|file| file.before != file.after).collect();
    if !check {
        for file in &changed {
            portcullis_foundation::atomic_file::replace(&file.name, file.after.as_bytes())
                .with_context(|| format!("cannot write {}", file.name.display()))?;
        }
    }
    if ctx.is_json() {
        let files = formatted.iter().map(|file| File {
            file: &file.name,
            changed: file.before != file.after,
            diff: (file.before != file.after && *check).then(|| diff(file)),
        });
        ctx.json(&Report { findings: &findings, files: files.collect() })?;
    } else {
        for finding in &findings {
            ctx.diagnostic(finding)?;
        }
        for file in &changed {
            if *check {
                for line in diff(file).lines() {
                    ctx.line(line)?;
                }
            } else {
                ctx.line(format!("formatted {}", file.name.display()))?;
            }
        }
        let files = count(formatted.len(), "file", "files");
        match (changed.len(), check) {
            (0, _) => ctx.line(format!("{files}: nothing to change"))?,
            (changed, true) => ctx.line(format!("{changed} of {files} would change"))?,
            (changed, false) => ctx.line(format!("{changed} of {files} changed"))?,
        }
    }
    let found = !findings.is_empty() || (*check && !changed.is_empty());
    Ok(if found { Exit::Findings } else { Exit::Ok })
}

/// Formats files. Names are relative to the working folder.
fn of_files(paths: &[PathBuf]) -> (Vec<Formatted>, Vec<Finding>) {
    format_files(paths, &std::env::current_dir().unwrap_or_default())
}

/// Formats standard input. Prints the result unless `check` is set.
fn of_stdin(ctx: &Context, check: bool) -> anyhow::Result<Result<Formatted, Exit>> {
    let mut before = String::new();
    io::stdin().read_to_string(&mut before).context("cannot read standard input")?;
    let name = PathBuf::from("<stdin>");
    let after = format(&name, &before)
        .map_err(|findings| Reports(findings.into_iter().map(|f| Box::new(f) as _).collect()))?;
    if check {
        return Ok(Ok(Formatted { name, before, after }));
    }
    ctx.verbatim(&after)?;
    Ok(Err(Exit::Ok))
}

fn diff(file: &Formatted) -> String {
    let name = file.name.to_string_lossy();
    TextDiff::from_lines(&file.before, &file.after)
        .unified_diff()
        .context_radius(2)
        .header(&name, &format!("{name} (formatted)"))
        .to_string()
}
