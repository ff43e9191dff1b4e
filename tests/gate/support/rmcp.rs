//! rmcp as a client: the steps of `tests/sdks/README.md`, in this process.

#![expect(deprecated, reason = "what 2026-07-28 deprecates must still work")]

use std::time::Duration;

use rmcp::{
    ClientHandler, ClientServiceExt, ErrorData, RoleClient, ServiceError,
    model::{
        CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientConfig, ClientRequest,
        CompleteRequestParams, CreateMessageRequestParams, CreateMessageResult,
        ElicitRequestParams, ElicitResult, ElicitationAction, GetPromptRequestParams,
        Implementation, ListRootsResult, ProgressNotificationParam, ProtocolVersion,
        ReadResourceRequestParams, Root, SamplingMessage,
    },
    service::{
        ClientLifecycleMode, NotificationContext, PeerRequestOptions, RequestContext,
        RunningService,
    },
    transport::{
        StreamableHttpClientTransport, TokioChildProcess,
        streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Value, json};
use tokio::{process::Command, sync::mpsc};

use super::{gate::reqwest_client, in_time};

/// Answers server requests, and passes progress on.
#[derive(Clone)]
struct Handler {
    progress: mpsc::UnboundedSender<f64>,
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let capabilities = ClientCapabilities::builder()
            .enable_sampling()
            .enable_elicitation()
            .enable_roots()
            .build();
        ClientConfig::new(capabilities, Implementation::new("rmcp", "1"))
    }

    async fn create_message(
        &self,
        _: CreateMessageRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let message = SamplingMessage::assistant_text("42 from a model");
        Ok(CreateMessageResult::new(message, "none".into()))
    }

    async fn create_elicitation(
        &self,
        params: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let answer = ElicitResult::new(ElicitationAction::Accept);
        Ok(match params {
            ElicitRequestParams::UrlElicitationParams { .. } => answer,
            _ => answer.with_content(json!({ "name": "Ada" })),
        })
    }

    async fn list_roots(
        &self,
        _: RequestContext<RoleClient>,
    ) -> Result<ListRootsResult, ErrorData> {
        Ok(ListRootsResult::new(vec![Root::new("file:///clients/root")]))
    }

    async fn on_progress(
        &self,
        progress: ProgressNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        let _ = self.progress.send(progress.progress);
    }
}

/// A connected client.
struct Client {
    service: RunningService<RoleClient, Handler>,
    progress: mpsc::UnboundedReceiver<f64>,
}

/// Executes these steps like the programs of `tests/sdks`, and returns the same report.
pub async fn report(era: &str, target: &[&str], key: Option<&str>, steps: &Value) -> Value {
    let mode = match era {
        "legacy" => ClientLifecycleMode::Initialize,
        _ => ClientLifecycleMode::Discover {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        },
    };
    let (sender, progress) = mpsc::unbounded_channel();
    let handler = Handler { progress: sender };
    let connecting = async {
        match target {
            ["--url", url] => {
                let mut config = StreamableHttpClientTransportConfig::with_uri(*url);
                if let Some(key) = key {
                    config = config.auth_header(key);
                }
                let http = StreamableHttpClientTransport::with_client(reqwest_client(), config);
                handler.serve_with_lifecycle(http, mode).await.unwrap()
            }
            ["--stdio", program, args @ ..] => {
                let mut command = Command::new(program);
                command.args(args);
                let (child, _) = TokioChildProcess::builder(command)
                    .stderr(std::process::Stdio::null())
                    .spawn()
                    .unwrap();
                handler.serve_with_lifecycle(child, mode).await.unwrap()
            }
            other => panic!("no target: {other:?}"),
        }
    };
    let service = in_time("rmcp to connect", connecting).await;
    let mut client = Client { service, progress };
    let mut outcomes = Vec::new();
    for step in steps.as_array().unwrap() {
        let outcome = in_time("rmcp's step", client.take(step)).await;
        outcomes.push(outcome.unwrap_or_else(|failure| match failure {
            ServiceError::McpError(error) => json!({ "error": error }),
            other => panic!("{step}: {other}"),
        }));
    }
    let revision = client.service.peer_info().unwrap().protocol_version.clone();
    let _ = in_time("rmcp's end", client.service.cancel()).await;
    json!({ "revision": revision, "steps": outcomes })
}

impl Client {
    async fn take(&mut self, step: &Value) -> Result<Value, ServiceError> {
        if let Some(mark) = step["cancel"].as_str() {
            return self.cancelled(mark).await;
        }
        let params = || step["params"].clone();
        let client = &self.service;
        let result = match step["method"].as_str().unwrap() {
            "tools/list" => wire(client.list_tools(None).await?),
            "tools/call" => wire(client.call_tool(of(params())).await?),
            "prompts/list" => wire(client.list_prompts(None).await?),
            "prompts/get" => wire(client.get_prompt(of::<GetPromptRequestParams>(params())).await?),
            "resources/list" => wire(client.list_resources(None).await?),
            "resources/templates/list" => wire(client.list_resource_templates(None).await?),
            "resources/read" => {
                wire(client.read_resource(of::<ReadResourceRequestParams>(params())).await?)
            }
            "completion/complete" => {
                wire(client.complete(of::<CompleteRequestParams>(params())).await?)
            }
            other => panic!("no step {other}"),
        };
        Ok(json!({ "result": result }))
    }

    /// Cancels a call at its first progress. Returns that, and what the server saw of the end.
    async fn cancelled(&mut self, mark: &str) -> Result<Value, ServiceError> {
        let call = |name: &str| -> CallToolRequestParams {
            of(json!({ "name": name, "arguments": { "mark": mark } }))
        };
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(call("wait")));
        let options = PeerRequestOptions::with_timeout(Duration::from_secs(60));
        let handle = self.service.send_cancellable_request(request, options).await?;
        let heard = self.progress.recv().await;
        handle.cancel(None).await?;
        let result = self.service.call_tool(call("cancelled")).await?;
        Ok(json!({ "result": wire(result), "heard": heard }))
    }
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn wire(value: impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}
