//! Results of test cases, for policies and plugins.

use std::{io, path::Path};

use super::Context;
use portcullis_policy::Finding;

/// Result of one case.
pub(super) struct CaseResult<'a> {
    pub file: &'a Path,
    pub passed: bool,
    /// Reasons for a failure.
    pub failure: &'a [Finding],
}

/// Prints errors in files, failures with their reasons, and one line per file. `noun` names the
/// tested item, singular and plural.
pub(super) fn print_report<'a>(
    ctx: &Context,
    findings: &[Finding],
    cases: impl Iterator<Item = CaseResult<'a>>,
    [one, many]: [&str; 2],
) -> io::Result<()> {
    let cases: Vec<_> = cases.collect();
    for finding in findings.iter().chain(cases.iter().flat_map(|case| case.failure)) {
        ctx.diagnostic(finding)?;
    }
    for cases in cases.chunk_by(|a, b| a.file == b.file) {
        let failed = cases.iter().filter(|case| !case.passed).count();
        let all = count(cases.len(), one, many);
        let file = cases.first().map(|case| case.file.display().to_string()).unwrap_or_default();
        match failed {
            0 => ctx.line(format!("{file}: {all} as expected"))?,
            failed => ctx.line(format!("{file}: {failed} of {all} NOT as expected"))?,
        }
    }
    Ok(())
}

/// Number with its noun, singular or plural.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
