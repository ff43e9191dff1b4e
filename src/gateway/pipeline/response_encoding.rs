//! Encodes the outcome of an exchange as the text of its response.

use std::sync::Arc;

use serde_json::Value;

use super::{ExchangeResponse, Outcome, Pipeline};
use crate::session::Session;
use portcullis_protocol::{
    codec::{Frame, Id, era::RESOURCE_NOT_FOUND},
    exchange::{Answer, Exchange, Method, Revision},
    refusal::{Code, Refusal},
};

impl Pipeline {
    /// Encodes the response as text.
    pub(super) fn encode(
        &self,
        exchange: &Exchange,
        id: Option<&Id>,
        outcome: Outcome,
        session: Option<Arc<Session>>,
    ) -> ExchangeResponse {
        let metrics = &self.recorder().metrics;
        match (outcome, id) {
            (Outcome::Answered(Answer::Result(result)), Some(id)) => {
                let text = Some(Frame::result(id, result.raw()));
                ExchangeResponse { text, session, ..ExchangeResponse::NONE }
            }
            (Outcome::Answered(Answer::Error(error)), Some(id)) => {
                let code = error.value().get("code").and_then(Value::as_i64);
                if let Some(code) = code {
                    metrics.error(code);
                }
                let text = Some(Frame::error(Some(id), error.raw()));
                ExchangeResponse { text, error: code, ..ExchangeResponse::NONE }
            }
            (Outcome::Refused(refusal), Some(id)) if is_input_error(exchange, &refusal) => {
                metrics.refusal(refusal.code);
                let result = refusal.to_tool_result(exchange.id, exchange.revision).to_string();
                let text = Some(Frame::result(id, result.as_bytes()));
                ExchangeResponse { text, refused: Some(refusal.code), ..ExchangeResponse::NONE }
            }
            (Outcome::Refused(refusal) | Outcome::Failed(refusal), id) => {
                let mut error = refusal.to_rpc_error(exchange.id);
                let mut rpc = refusal.code.rpc();
                if is_missing_resource(exchange, &refusal) {
                    rpc = RESOURCE_NOT_FOUND;
                    error["code"] = rpc.into();
                }
                if id.is_some() {
                    metrics.refusal(refusal.code);
                    metrics.error(rpc.into());
                }
                let text = Frame::error(id, error.to_string().as_bytes());
                let error = Some(rpc.into());
                ExchangeResponse { error, ..ExchangeResponse::refused(text, refusal.code) }
            }
            // On record already. Only transports that must answer send it.
            (Outcome::Cancelled, Some(id)) => {
                let refusal = Refusal::new(Code::Cancelled, "the client cancelled the request");
                let error = refusal.to_rpc_error(exchange.id).to_string();
                ExchangeResponse::refused(Frame::error(Some(id), error.as_bytes()), refusal.code)
            }
            (Outcome::Answered(_) | Outcome::Cancelled, None) => ExchangeResponse::NONE,
        }
    }
}

/// Whether a refusal is an input error of a tool. Since revision 2025-11-25, input errors are results
/// that the model sees. A call that requests a task has no such result, since it is answered with
/// the task.
fn is_input_error(exchange: &Exchange, refusal: &Refusal) -> bool {
    refusal.code == Code::ArgumentsInvalid
        && exchange.method.as_str() == Method::TOOLS_CALL
        && exchange.revision >= Revision::V2025_11_25
        && (exchange.revision.is_modern() || exchange.request.value().get("task").is_none())
}

/// Whether a refusal is that of a resource that does not exist, which has a code of its own in earlier
/// revisions.
fn is_missing_resource(exchange: &Exchange, refusal: &Refusal) -> bool {
    refusal.code == Code::Unknown
        && exchange.method.as_str() == Method::RESOURCES_READ
        && !exchange.revision.is_modern()
}
