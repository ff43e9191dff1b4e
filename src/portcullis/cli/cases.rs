//! What came of cases, of policies and of plugins alike.

use std::{io, path::Path};

use super::Context;
use portcullis_policy::Finding;

/// A case that was run.
pub(super) struct Told<'a> {
    pub file: &'a Path,
    pub passed: bool,
    /// Why it did not pass.
    pub failure: &'a [Finding],
}

/// Prints what is wrong with the files, what failed and how, and one line a file. `noun` is what was
/// asked, one and many.
pub(super) fn tell<'a>(
    ctx: &Context,
    findings: &[Finding],
    cases: impl Iterator<Item = Told<'a>>,
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

/// A number with the word for what it counts.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
