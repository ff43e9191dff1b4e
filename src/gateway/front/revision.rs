//! Negotiation of the protocol revision.

use serde_json::json;

use portcullis_protocol::{
    codec::Object,
    exchange::Revision,
    refusal::{Code, Refusal},
};

/// The revision to negotiate: the client's, if it is a known legacy revision; otherwise the latest
/// legacy one.
///
/// # Errors
/// A refusal if the client names no revision.
pub(super) fn negotiate(params: Option<&Object>) -> Result<Revision, Refusal> {
    let version = params.and_then(|params| params.string("protocolVersion")).ok_or_else(|| {
        Refusal::new(Code::InvalidParams, "`initialize` needs `params` with a `protocolVersion`")
    })?;
    let revision = Revision::parse(&version).filter(|revision| !revision.is_modern());
    Ok(revision.unwrap_or(Revision::LATEST_LEGACY))
}

/// Refusal of a revision that is not supported.
pub(super) fn unsupported(requested: &str) -> Refusal {
    let supported: Vec<_> = Revision::ALL.iter().rev().map(|r| r.as_str()).collect();
    let requested: String = requested.chars().filter(|c| !c.is_control()).take(32).collect();
    Refusal::new(Code::RevisionUnsupported, "this protocol revision is not supported")
        .data("supported", json!(supported))
        .data("requested", json!(requested))
}
