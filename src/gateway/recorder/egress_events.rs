//! Events of connections that servers open through the proxy.

use portcullis_audit::record::{
    EgressClosed, EgressConnecting, EgressEnd, clip_words, micros, rule,
};
use portcullis_egress::{Attempt, End, Outcome};
use portcullis_protocol::{identity::PrincipalKind, refusal};
use portcullis_runtime::egress_netns::EgressContext;

/// The event that is recorded before a server is connected.
pub(crate) fn reaching(
    egress_context: &EgressContext,
    attempt: &Attempt,
    rules: &[refusal::Rule],
    revision: &str,
) -> EgressConnecting {
    EgressConnecting {
        launch: egress_context.launch,
        server: egress_context.server.to_string(),
        principal: egress_context.principal.get().map(PrincipalKind::name),
        connection: attempt.number,
        host: attempt.host.plain(),
        port: attempt.port,
        protocol: attempt.protocol.as_str().to_owned(),
        rules: rules.iter().map(rule).collect(),
        policy_revision: revision.to_owned(),
    }
}

/// The event of a connection that ended, with the policies that refused it, if any.
pub(crate) fn reached(
    egress_context: &EgressContext,
    outcome: &Outcome,
    forbidden: Option<(&[refusal::Rule], &str)>,
) -> EgressClosed {
    let attempt = outcome.attempt.as_ref();
    let (code, reason) = match &outcome.end {
        End::Refused(refusal) => (Some(refusal.code()), Some(refusal.to_string())),
        End::Revoked(why) => (Some("policy"), Some(why.clone())),
        _ => (None, None),
    };
    let (rules, revision) = forbidden.unzip();
    EgressClosed {
        launch: egress_context.launch,
        server: egress_context.server.to_string(),
        principal: egress_context.principal.get().map(PrincipalKind::name),
        connection: attempt.map(|attempt| attempt.number),
        host: attempt.map(|attempt| attempt.host.plain()),
        port: attempt.map(|attempt| attempt.port),
        protocol: attempt.map(|attempt| attempt.protocol.as_str().to_owned()),
        address: outcome.address.map(|address| address.to_string()),
        up: outcome.up,
        down: outcome.down,
        took_us: micros(outcome.duration),
        end: match &outcome.end {
            End::Refused(_) => EgressEnd::Refused,
            End::Closed => EgressEnd::Closed,
            End::Broken => EgressEnd::Broken,
            End::Idle => EgressEnd::Idle,
            End::Revoked(_) => EgressEnd::Revoked,
            End::Stopped => EgressEnd::Stopped,
        },
        code: code.map(str::to_owned),
        reason: reason.map(|reason| clip_words(&reason)),
        rules: rules.unwrap_or_default().iter().map(rule).collect(),
        policy_revision: revision.map(str::to_owned),
    }
}
