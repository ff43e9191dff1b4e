//! Start failures as errors for people.

use super::Reports;
use crate::manage::run::NotStarted;
use portcullis_gateway::StartFailure;

/// Failure of the gateway as an error for people.
pub(super) fn reported(failure: StartFailure) -> anyhow::Error {
    match failure {
        StartFailure::Config(found, _) => Reports(found).into(),
        StartFailure::Policies(diagnostics) => {
            Reports(boxed(diagnostics.findings().to_vec())).into()
        }
        StartFailure::Audit(unavailable) => {
            let remedy = unavailable.remedy();
            anyhow::anyhow!("{unavailable}; {remedy}")
        }
        failure @ (StartFailure::Seal(_)
        | StartFailure::Clients(_)
        | StartFailure::Export(_)
        | StartFailure::PluginState(_)
        | StartFailure::Watch(_)
        | StartFailure::WatchPlugins(_)
        | StartFailure::Task(_)) => failure.into(),
    }
}

fn boxed<D: miette::Diagnostic + Send + Sync + 'static>(
    findings: Vec<D>,
) -> Vec<Box<dyn miette::Diagnostic + Send + Sync>> {
    findings.into_iter().map(|finding| Box::new(finding) as _).collect()
}

/// Failure of a run as an error for people.
pub(super) fn not_started(failure: NotStarted) -> anyhow::Error {
    match failure {
        NotStarted::Gateway(failure) => reported(failure),
        NotStarted::Other(error) => error,
    }
}
