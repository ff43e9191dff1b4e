//! `portcullis policy test`: runs the test cases of policies.

use std::path::PathBuf;

use serde::Serialize;

use super::source;
use crate::cli::{
    Context, Exit, Usage,
    cases::{CaseResult, count, print_report},
};
use portcullis_policy::Finding;
use portcullis_policy_tools::{CaseReport, Coverage, run_cases};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Test {
    /// Case files (`NAME.test.yaml`), folders and policy files, instead of the config's
    paths: Vec<PathBuf>,
    /// Run only cases with this text in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// List the policies that decide no case
    #[arg(long, conflicts_with = "filter")]
    coverage: bool,
    /// Fail if fewer than this percentage of policies decide a case
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(..=100))]
    #[arg(conflicts_with = "filter")]
    fail_under: Option<u8>,
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    passed: usize,
    failed: usize,
    findings: &'a [Finding],
    cases: &'a [CaseReport],
    #[serde(skip_serializing_if = "Option::is_none")]
    coverage: Option<Covered<'a>>,
}

#[derive(Debug, Serialize)]
struct Covered<'a> {
    percent: usize,
    #[serde(flatten)]
    coverage: &'a Coverage,
}

/// Runs the verb.
pub fn test(options: &Test, ctx: &Context) -> anyhow::Result<Exit> {
    let Test { paths, filter, coverage, fail_under } = options;
    let sources = match paths.as_slice() {
        [] => source(&ctx.load()?).paths().to_vec(),
        paths => paths.to_vec(),
    };
    let here = std::env::current_dir().unwrap_or_default();
    let report = run_cases(&sources, &here, filter.as_deref());
    if report.cases.is_empty() && report.findings.is_empty() {
        return Err(match filter {
            Some(filter) => Usage(format!("no case has `{filter}` in its name")),
            None => Usage(
                "there are no cases: write some to `NAME.test.yaml` beside the policies".to_owned(),
            ),
        }
        .into());
    }
    let failed = report.cases.iter().filter(|case| !case.passed).count();
    let covers = *coverage || fail_under.is_some();
    let percent = report.coverage.percent();
    let too_few = fail_under.is_some_and(|least| percent < usize::from(least));
    if ctx.is_json() {
        let covered = Covered { percent, coverage: &report.coverage };
        ctx.json(&Summary {
            passed: report.cases.len() - failed,
            failed,
            findings: &report.findings,
            cases: &report.cases,
            coverage: covers.then_some(covered),
        })?;
    } else {
        let results = report.cases.iter().map(|case| CaseResult {
            file: &case.file,
            passed: case.passed,
            failure: &case.failure,
        });
        print_report(ctx, &report.findings, results, ["request", "requests"])?;
        if covers {
            let Coverage { policies, undecided } = &report.coverage;
            let decided = policies - undecided.len();
            let policies = count(*policies, "policy decides", "policies decide");
            ctx.line(format!("{decided} of {policies} a case ({percent} %)"))?;
            for rule in undecided {
                let file = rule.file.clone().unwrap_or_default();
                let line = rule.line.unwrap_or_default();
                ctx.line(format!("  no case: {}  {}:{line}", rule.id, file.display()))?;
            }
        }
        if too_few {
            let least = fail_under.unwrap_or_default();
            ctx.line(format!("that is fewer than {least} %"))?;
        }
        if !report.findings.is_empty() {
            ctx.line(count(report.findings.len(), "finding", "findings"))?;
        }
    }
    let good = failed == 0 && report.findings.is_empty() && !too_few;
    Ok(if good { Exit::Ok } else { Exit::Findings })
}
