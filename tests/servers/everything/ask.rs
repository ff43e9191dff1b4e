//! Asking the client: by requests of the server's own before 2026-07-28, and since by results that
//! say what is missing.

#![expect(deprecated, reason = "sampling and roots are deprecated, and have to work")]

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use rmcp::{
    ErrorData, RoleServer, ServiceError,
    model::{
        ClientCapabilities, CreateMessageResult, ElicitResult, InputRequest, InputRequests,
        InputRequiredResult, InputResponses, ListRootsResult, RequestStateCodec,
    },
    service::RequestContext,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// What was asked, under the names that it was asked by.
pub type Answers = BTreeMap<String, Value>;

/// The answers, or what is still to be asked.
pub enum Gathered {
    All(Answers),
    Missing(InputRequests),
}

/// One round of a request: the only one before 2026-07-28.
pub struct Round<'r> {
    pub context: &'r RequestContext<RoleServer>,
    pub given: Option<&'r InputResponses>,
    pub state: Option<&'r str>,
    pub codec: &'r RequestStateCodec,
}

/// Whether the request is of 2026-07-28.
pub fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|revision| !revision.has_initialize())
}

impl Round<'_> {
    /// Asks what this round has no answer to, all at once.
    pub async fn gather(&self, requests: InputRequests) -> Result<Gathered, ErrorData> {
        for request in requests.values() {
            self.allowed(request)?;
        }
        if !is_modern(self.context) {
            let asked = requests
                .into_iter()
                .map(async |(name, request)| Ok::<_, ErrorData>((name, self.send(request).await?)));
            return Ok(Gathered::All(try_join_all(asked).await?.into_iter().collect()));
        }
        let mut answers = Answers::new();
        let mut missing = InputRequests::new();
        for (name, request) in requests {
            let given = self.given.and_then(|given| given.get(&name));
            match given.filter(|answer| fits(&request, answer)) {
                Some(answer) => _ = answers.insert(name, answer.clone()),
                None => _ = missing.insert(name, request),
            }
        }
        Ok(if missing.is_empty() { Gathered::All(answers) } else { Gathered::Missing(missing) })
    }

    /// What the last round left for this one. Nothing in the first.
    pub fn resumed<T: DeserializeOwned>(&self) -> Result<Option<T>, ErrorData> {
        if self.given.is_none() && self.state.is_none() {
            return Ok(None);
        }
        let refused = || ErrorData::invalid_params("requestState is not one of this server", None);
        let state = self.state.ok_or_else(refused)?;
        self.codec.open_json(state).map(Some).map_err(|_| refused())
    }

    /// The result that asks, and leaves this to the next round.
    pub fn asking<T: Serialize>(
        &self,
        missing: InputRequests,
        left: &T,
    ) -> Result<InputRequiredResult, ErrorData> {
        let state = self.codec.seal_json(left);
        let state = state.map_err(|e| ErrorData::internal_error(e.to_string(), None))?;
        Ok(InputRequiredResult::new(Some(missing), Some(state)))
    }

    /// Nobody may be asked what they did not say they can be asked.
    fn allowed(&self, request: &InputRequest) -> Result<(), ErrorData> {
        let declared = self.context.client_capabilities().unwrap_or_default();
        let (name, declared) = match request {
            InputRequest::CreateMessage(_) => ("sampling", declared.sampling.is_some()),
            InputRequest::Elicitation(_) => ("elicitation", declared.elicitation.is_some()),
            _ => ("roots", declared.roots.is_some()),
        };
        if declared { Ok(()) } else { Err(undeclared(self.context, name)) }
    }

    async fn send(&self, request: InputRequest) -> Result<Value, ErrorData> {
        let peer = &self.context.peer;
        let answer = match request {
            InputRequest::CreateMessage(request) => {
                peer.create_message(request.params).await.map(|answer| json!(answer))
            }
            InputRequest::Elicitation(request) => {
                peer.create_elicitation(request.params).await.map(|answer| json!(answer))
            }
            _ => peer.list_roots().await.map(|answer| json!(answer)),
        };
        answer.map_err(|error| match error {
            ServiceError::McpError(error) => error,
            other => ErrorData::internal_error(other.to_string(), None),
        })
    }
}

/// The refusal where a client lacks a capability. The code is of 2026-07-28.
pub fn undeclared(context: &RequestContext<RoleServer>, capability: &str) -> ErrorData {
    if !is_modern(context) {
        let message = format!("the client has not declared the capability {capability}");
        return ErrorData::invalid_request(message, None);
    }
    let required = match capability {
        "tasks" => ClientCapabilities::builder().enable_tasks().build(),
        "sampling" => ClientCapabilities::builder().enable_sampling().build(),
        "elicitation" => ClientCapabilities::builder().enable_elicitation().build(),
        _ => ClientCapabilities::builder().enable_roots().build(),
    };
    ErrorData::missing_required_client_capability(required)
}

/// Whether an answer has the form of an answer to this.
fn fits(request: &InputRequest, answer: &Value) -> bool {
    match request {
        InputRequest::CreateMessage(_) => CreateMessageResult::deserialize_from(answer),
        InputRequest::Elicitation(_) => ElicitResult::deserialize_from(answer),
        _ => ListRootsResult::deserialize_from(answer),
    }
}

trait DeserializeFrom: DeserializeOwned {
    fn deserialize_from(value: &Value) -> bool {
        Self::deserialize(value).is_ok()
    }
}

impl<T: DeserializeOwned> DeserializeFrom for T {}

/// A question to the person, by a form with these properties, all of them required.
pub fn elicit(message: &str, properties: Value) -> InputRequest {
    let required: Vec<_> =
        properties.as_object().into_iter().flat_map(|properties| properties.keys()).collect();
    let schema = json!({"type": "object", "properties": properties, "required": required});
    request("elicitation/create", json!({"message": message, "requestedSchema": schema}))
}

/// A question to the model.
pub fn sample(text: &str, max_tokens: u32) -> InputRequest {
    let message = json!({"role": "user", "content": {"type": "text", "text": text}});
    request("sampling/createMessage", json!({"messages": [message], "maxTokens": max_tokens}))
}

/// A question for the client's roots.
pub fn roots() -> InputRequest {
    request("roots/list", json!({}))
}

/// One question, under one name.
pub fn only(name: &str, request: InputRequest) -> InputRequests {
    InputRequests::from([(name.to_owned(), request)])
}

fn request(method: &str, params: Value) -> InputRequest {
    let request = json!({"method": method, "params": params});
    serde_json::from_value(request).expect("what is asked here is written here")
}
