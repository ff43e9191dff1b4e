//! `portcullis plugin test`: runs the test cases of plugins.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    cli::{
        Context, Exit, Usage,
        cases::{CaseResult, count, print_report},
    },
    plugin_dev::{CaseReport, Hook, run_cases},
};
use portcullis_policy::Finding;

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// Folders and case files (`NAME.test.yaml`)
    #[arg(value_name = "DIR|FILE", default_value = ".")]
    paths: Vec<PathBuf>,
    /// The component for all test cases, instead of those that the files name
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Run only cases with this text in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

impl Test {
    /// All cases of a project.
    pub fn of_project(folder: PathBuf) -> Self {
        Self { paths: vec![folder], plugin: None, filter: None }
    }
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    passed: usize,
    failed: usize,
    findings: &'a [Finding],
    cases: &'a [CaseReport],
    /// Hooks that no case covers.
    unmet: &'a [Hook],
}

/// Runs the verb.
pub async fn test(options: &Test, ctx: &Context) -> anyhow::Result<Exit> {
    let Test { paths, plugin, filter } = options;
    let here = std::env::current_dir().unwrap_or_default();
    let progress = ctx.progress("compiling plugins and asking them");
    let report = run_cases(paths, plugin.as_deref(), &here, filter.as_deref()).await;
    drop(progress);
    if report.cases.is_empty() && report.findings.is_empty() {
        return Err(Usage(match filter {
            Some(filter) => format!("no case has `{filter}` in its name"),
            None => "there are no cases: write some to `NAME.test.yaml` beside the plugin `NAME`"
                .to_owned(),
        })
        .into());
    }
    let failed = report.cases.iter().filter(|case| !case.passed).count();
    // Some cases alone do not show which hooks are not covered.
    let unmet = if filter.is_none() { report.unmet.as_slice() } else { &[] };
    if ctx.is_json() {
        ctx.json(&Summary {
            passed: report.cases.len() - failed,
            failed,
            findings: &report.findings,
            cases: &report.cases,
            unmet,
        })?;
    } else {
        let results = report.cases.iter().map(|case| CaseResult {
            file: &case.file,
            passed: case.passed,
            failure: case.failure.as_slice(),
        });
        print_report(ctx, &report.findings, results, ["message", "messages"])?;
        for Hook { plugin, event, phase } in unmet {
            ctx.line(format!("no case: {plugin} is asked about the {phase} of {event}"))?;
        }
        if !report.findings.is_empty() {
            ctx.line(count(report.findings.len(), "finding", "findings"))?;
        }
    }
    let good = failed == 0 && report.findings.is_empty();
    Ok(if good { Exit::Ok } else { Exit::Findings })
}
