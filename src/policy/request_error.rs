//! Requests that Cedar cannot evaluate.

use super::typed::InputMismatch;
use portcullis_protocol::arguments::Unshowable;

/// Why a request cannot be evaluated by Cedar. The texts contain nothing of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Unshowable(#[from] Unshowable),
    #[error("the arguments do not fit the tool's typed action: {0}")]
    InputMismatch(#[from] InputMismatch),
    #[error("the {0} does not fit the policy schema")]
    SchemaMismatch(&'static str),
}
