//! The server that the conformance suite needs, of rmcp, with the extension for tasks.

#![expect(deprecated, reason = "what 2026-07-28 deprecates must still work")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams,
        ClientCapabilities, CompleteRequestParams, CompleteResult, CreateTaskResult,
        GetPromptRequestParams, GetPromptResponse, GetPromptResult, GetTaskParams, GetTaskResult,
        Implementation, InputRequests, InputRequiredResult, InputResponses, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, LoggingLevel,
        LoggingMessageNotificationParam, PaginatedRequestParams, ProgressNotificationParam,
        ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, RequestStateCodec,
        ServerCapabilities, ServerConfig, SetLevelRequestParams, SubscribeRequestParams,
        SubscriptionFilter, Tool, UnsubscribeRequestParams, UpdateTaskParams,
    },
    service::{RequestContext, SubscriptionContext, SubscriptionSink},
    task_manager::{TaskExit, TaskManager, TaskOptions},
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
const WAV: &str = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA=";

/// Serves until the test ends. Returns the URL.
pub async fn serve() -> String {
    let server = Server {
        listeners: Arc::default(),
        tasks: TaskManager::new(),
        states: RequestStateCodec::new_unchecked([7; 32].as_slice()),
    };
    let service = StreamableHttpService::new(
        move || Ok(server.clone()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default(),
    );
    let app = axum::Router::new().nest_service("/mcp", service);
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{addr}/mcp")
}

#[derive(Clone)]
struct Server {
    listeners: Arc<Mutex<Vec<SubscriptionSink>>>,
    tasks: TaskManager,
    states: RequestStateCodec,
}

type Context = RequestContext<RoleServer>;

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn text(text: impl Into<String>) -> Value {
    json!({ "type": "text", "text": text.into() })
}

fn image() -> Value {
    json!({ "type": "image", "data": PNG, "mimeType": "image/png" })
}

fn embedded(uri: &str, mime: &str, text: &str) -> Value {
    json!({ "type": "resource", "resource": { "uri": uri, "mimeType": mime, "text": text } })
}

fn form(properties: &Value, required: &Value) -> Value {
    json!({ "type": "object", "properties": properties, "required": required })
}

fn done(content: Value) -> CallToolResult {
    of(json!({ "resultType": "complete", "content": content }))
}

/// Server requests of the modern era.
fn elicit(name: &str, kind: &str) -> Value {
    let schema = form(&json!({ name: { "type": kind } }), &json!([name]));
    let params = json!({ "message": format!("What is the {name}?"), "requestedSchema": schema });
    json!({ "method": "elicitation/create", "params": params })
}

fn sample() -> Value {
    let question = json!({ "role": "user", "content": text("What is the capital of France?") });
    let params = json!({ "messages": [question], "maxTokens": 100 });
    json!({ "method": "sampling/createMessage", "params": params })
}

/// The inputs that each tool requests, and whether with a state.
fn inputs(tool: &str) -> Option<(Value, bool)> {
    let roots = json!({ "method": "roots/list" });
    let several = json!({
        "user_name": elicit("name", "string"), "greeting": sample(), "client_roots": roots
    });
    Some(match tool.strip_prefix("test_input_required_result_")? {
        "elicitation" => (json!({ "user_name": elicit("name", "string") }), false),
        "sampling" => (json!({ "capital_question": sample() }), false),
        "list_roots" => (json!({ "client_roots": roots }), false),
        "request_state" | "tampered_state" => (json!({ "confirm": elicit("ok", "boolean") }), true),
        "multiple_inputs" => (several, true),
        "capabilities" => (several, false),
        _ => return None,
    })
}

fn unknown(what: &str) -> ErrorData {
    ErrorData::invalid_params(format!("unknown: {what}"), None)
}

const TOOLS: [&str; 31] = [
    "test_simple_text",
    "test_image_content",
    "test_audio_content",
    "test_embedded_resource",
    "test_multiple_content_types",
    "test_tool_with_logging",
    "test_logging_tool",
    "test_error_handling",
    "test_tool_with_progress",
    "test_sampling",
    "test_elicitation",
    "test_elicitation_sep1034_defaults",
    "test_elicitation_sep1330_enums",
    "test_trigger_tool_change",
    "test_trigger_prompt_change",
    "test_missing_capability",
    "test_streaming_elicitation",
    "test_input_required_result_elicitation",
    "test_input_required_result_sampling",
    "test_input_required_result_list_roots",
    "test_input_required_result_request_state",
    "test_input_required_result_tampered_state",
    "test_input_required_result_multiple_inputs",
    "test_input_required_result_multi_round",
    "test_input_required_result_capabilities",
    "greet",
    "slow_compute",
    "failing_job",
    "protocol_error_job",
    "confirm_delete",
    "test_x_mcp_header",
];

impl Server {
    /// Requests inputs until all are there.
    fn asks(
        &self,
        request: &CallToolRequestParams,
        context: &Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let answers = request.input_responses.clone().unwrap_or_default();
        let state = match &request.request_state {
            Some(state) => Some(self.states.open_json::<u64>(state).map_err(|_| unknown("state"))?),
            None => None,
        };
        if request.name == "test_input_required_result_multi_round" {
            let round = state.unwrap_or(0);
            if round == 2 {
                return Ok(done(json!([text("Multi-round complete")])).into());
            }
            let name = if round == 0 { "name" } else { "color" };
            let requests = json!({ format!("step{}", round + 1): elicit(name, "string") });
            let state = self.states.seal_json(&(round + 1)).unwrap();
            return Ok(InputRequiredResult::new(Some(of(requests)), Some(state)).into());
        }
        let (mut requests, sealed) = inputs(&request.name).ok_or_else(|| unknown("tool"))?;
        if request.name.ends_with("capabilities") {
            let declared = context.client_capabilities().unwrap_or_default();
            let members = requests.as_object_mut().unwrap();
            members.retain(|name, _| match name.as_str() {
                "user_name" => declared.elicitation.is_some(),
                "greeting" => declared.sampling.is_some(),
                _ => declared.roots.is_some(),
            });
        }
        let requests: InputRequests = of(requests);
        let answered = |name: &String| answers.get(name).is_some_and(Value::is_object);
        if requests.keys().all(answered) && (!sealed || state.is_some()) {
            return Ok(done(json!([text(format!("state-ok: {answers:?}"))])).into());
        }
        let state = sealed.then(|| self.states.seal_json(&1).unwrap());
        Ok(InputRequiredResult::new(Some(requests), state).into())
    }

    /// Starts a task if the client knows tasks, and completes the call otherwise.
    async fn job(
        &self,
        request: &CallToolRequestParams,
        context: &Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let tasks = context.client_capabilities().is_some_and(|declared| declared.supports_tasks());
        let name = request.name.to_string();
        if !tasks && name != "slow_compute" {
            let required = ClientCapabilities::builder().enable_tasks().build();
            return Err(ErrorData::missing_required_client_capability(required));
        }
        let seconds = request.arguments.as_ref().and_then(|all| all.get("seconds")?.as_f64());
        let time = Duration::from_secs_f64(seconds.unwrap_or(0.2));
        if !tasks {
            sleep(time).await;
            return Ok(done(json!([text("computed")])).into());
        }
        let task = self.tasks.spawn(TaskOptions::default(), move |task| {
            Box::pin(async move {
                match name.as_str() {
                    "failing_job" => {
                        sleep(Duration::from_secs(1)).await;
                        Ok(CallToolResult::error(of(json!([text("failed")]))))
                    }
                    "protocol_error_job" => {
                        sleep(time).await;
                        Err(TaskExit::Error(ErrorData::internal_error("failed", None)))
                    }
                    "confirm_delete" => {
                        let answer =
                            task.request_input("confirm", of(elicit("confirm", "boolean")));
                        Ok(done(json!([text(format!("answer: {:?}", answer.await?))])))
                    }
                    _ => tokio::select! {
                        () = task.cancelled() => Err(TaskExit::Cancelled),
                        () = sleep(time) => Ok(done(json!([text("computed")]))),
                    },
                }
            })
        });
        Ok(CreateTaskResult::new(task).into())
    }

    async fn log(context: &Context, level: LoggingLevel, message: &str) {
        let message = LoggingMessageNotificationParam::new(level, json!(message));
        context.peer.notify_logging_message(message).await.unwrap();
    }
}

/// Requests an elicitation of the legacy era.
async fn elicited(context: &Context, message: &str, schema: Value) -> Result<Value, ErrorData> {
    let params = json!({ "mode": "form", "message": message, "requestedSchema": schema });
    let answer = context.peer.create_elicitation(of(params)).await;
    let answer = answer.map_err(|e| ErrorData::internal_error(e.to_string(), None))?;
    Ok(text(format!("Elicitation completed: {}", serde_json::to_string(&answer).unwrap())))
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_resources_list_changed()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_completions()
            .enable_logging()
            .enable_tasks();
        ServerConfig::new(capabilities.build()).with_server_info(Implementation::new("rmcp", "1"))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let properties = match name {
            "test_x_mcp_header" => {
                json!({ "region": { "type": "string", "x-mcp-header": "Region" } })
            }
            "test_sampling" => json!({ "prompt": { "type": "string" } }),
            "test_elicitation" => json!({ "message": { "type": "string" } }),
            name => TOOLS.contains(&name).then(|| json!({}))?,
        };
        let schema = Arc::new(of(form(&properties, &json!([]))));
        Some(Tool::new(name.to_owned(), format!("Tool {name}"), schema))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = TOOLS.iter().map(|name| self.get_tool(name).unwrap());
        Ok(ListToolsResult::with_all_items(tools.collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let argument = |name: &str| {
            let value = request.arguments.as_ref().and_then(|all| all.get(name));
            value.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let content = match &*request.name {
            "test_simple_text" => json!([text("This is a simple text response for testing.")]),
            "test_image_content" => json!([image()]),
            "test_audio_content" => {
                json!([{ "type": "audio", "data": WAV, "mimeType": "audio/wav" }])
            }
            "test_embedded_resource" => {
                let resource = "This is an embedded resource content.";
                json!([embedded("test://embedded-resource", "text/plain", resource)])
            }
            "test_multiple_content_types" => {
                let data = r#"{"test":"data","value":123}"#;
                let mixed = embedded("test://mixed-content-resource", "application/json", data);
                json!([text("Multiple content types test:"), image(), mixed])
            }
            "test_error_handling" => {
                let error = "This tool intentionally returns an error for testing";
                return Ok(CallToolResult::error(of(json!([text(error)]))).into());
            }
            "test_tool_with_logging" => {
                for step in ["started", "in process", "completed"] {
                    Self::log(&context, LoggingLevel::Info, &format!("execution {step}")).await;
                    sleep(Duration::from_millis(50)).await;
                }
                json!([text("logged")])
            }
            "test_logging_tool" => {
                if let Some(level) = context.meta.log_level() {
                    Self::log(&context, level, "test_logging_tool").await;
                }
                json!([text("logged")])
            }
            "test_tool_with_progress" => {
                if let Some(token) = context.meta.get_progress_token() {
                    for progress in [0.0, 50.0, 100.0] {
                        let step = ProgressNotificationParam::new(token.clone(), progress);
                        let step = step.with_total(100.0).with_message(format!("step {progress}"));
                        context.peer.notify_progress(step).await.unwrap();
                        sleep(Duration::from_millis(50)).await;
                    }
                }
                json!([text("done")])
            }
            "test_sampling" => {
                let message = json!({ "role": "user", "content": text(argument("prompt")) });
                let params = of(json!({ "messages": [message], "maxTokens": 100 }));
                let answer = context.peer.create_message(params).await;
                let answer = answer.map_err(|e| ErrorData::internal_error(e.to_string(), None))?;
                let answer = serde_json::to_string(&answer).unwrap();
                json!([text(format!("LLM response: {answer}"))])
            }
            "test_elicitation" => {
                let schema =
                    form(&json!({ "response": { "type": "string" } }), &json!(["response"]));
                json!([elicited(&context, &argument("message"), schema).await?])
            }
            "test_elicitation_sep1034_defaults" => {
                let states = ["active", "inactive", "pending"];
                let properties = json!({
                    "name": { "type": "string", "default": "John Doe" },
                    "age": { "type": "integer", "default": 30 },
                    "score": { "type": "number", "default": 95.5 },
                    "status": { "type": "string", "enum": states, "default": "active" },
                    "verified": { "type": "boolean", "default": true },
                });
                json!([elicited(&context, "Please answer", form(&properties, &json!([]))).await?])
            }
            "test_elicitation_sep1330_enums" => {
                let names = ["a", "b", "c"];
                let titled =
                    names.map(|name| json!({ "const": name, "title": format!("The {name}") }));
                let properties = json!({
                    "untitledSingle": { "type": "string", "enum": names },
                    "titledSingle": { "type": "string", "oneOf": titled },
                    "legacyEnum": { "type": "string", "enum": names, "enumNames": names },
                    "untitledMulti": { "type": "array", "items": { "type": "string", "enum": names } },
                    "titledMulti": { "type": "array", "items": { "anyOf": titled } },
                });
                json!([elicited(&context, "Please choose", form(&properties, &json!([]))).await?])
            }
            "test_trigger_tool_change" => {
                let listeners = self.listeners.lock().unwrap().clone();
                for listener in listeners {
                    let _ = listener.notify_tool_list_changed().await;
                }
                json!([text("changed")])
            }
            "test_trigger_prompt_change" => {
                let listeners = self.listeners.lock().unwrap().clone();
                for listener in listeners {
                    let _ = listener.notify_prompt_list_changed().await;
                }
                json!([text("changed")])
            }
            "test_missing_capability" => {
                let declared = context.client_capabilities().unwrap_or_default();
                if declared.sampling.is_none() {
                    let required = ClientCapabilities::builder().enable_sampling().build();
                    return Err(ErrorData::missing_required_client_capability(required));
                }
                json!([text("declared")])
            }
            "test_streaming_elicitation" => json!([text("streamed")]),
            "test_x_mcp_header" => json!([text(argument("region"))]),
            "greet" => json!([text(format!("Hello, {}!", argument("name")))]),
            "slow_compute" | "failing_job" | "protocol_error_job" | "confirm_delete" => {
                return self.job(&request, &context).await;
            }
            _ => return self.asks(&request, &context),
        };
        Ok(done(content).into())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourcesResult, ErrorData> {
        let uris = ["static-text", "static-binary", "watched-resource"];
        let resources = uris.map(|name| json!({ "uri": format!("test://{name}"), "name": name }));
        Ok(ListResourcesResult::with_all_items(of(json!(resources))))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let template = json!({ "uriTemplate": "test://template/{id}/data", "name": "template" });
        Ok(ListResourceTemplatesResult::with_all_items(of(json!([template]))))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let uri = request.uri;
        let content = match uri.as_str() {
            "test://static-text" | "test://watched-resource" => {
                json!({ "uri": uri, "mimeType": "text/plain", "text": "The text." })
            }
            "test://static-binary" => json!({ "uri": uri, "mimeType": "image/png", "blob": PNG }),
            _ => {
                let id =
                    uri.strip_prefix("test://template/").and_then(|id| id.strip_suffix("/data"));
                let missing =
                    || ErrorData::resource_not_found("unknown", Some(json!({ "uri": uri })));
                let data =
                    json!({ "id": id.ok_or_else(missing)?, "templateTest": true }).to_string();
                json!({ "uri": uri, "mimeType": "application/json", "text": data })
            }
        };
        Ok(ReadResourceResult::new(of(json!([content]))).into())
    }

    async fn subscribe(&self, _: SubscribeRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(&self, _: UnsubscribeRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.listeners.lock().unwrap().push(context.sink().clone());
        context.cancelled().await;
        Ok(())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListPromptsResult, ErrorData> {
        let prompts = [
            ("test_simple_prompt", &[][..]),
            ("test_prompt_with_arguments", &["arg1", "arg2"]),
            ("test_prompt_with_embedded_resource", &["resourceUri"]),
            ("test_prompt_with_image", &[]),
            ("test_input_required_result_prompt", &[]),
        ];
        let prompts = prompts.map(|(name, arguments)| {
            let argument = |name: &&str| json!({ "name": name, "required": true });
            let arguments: Vec<_> = arguments.iter().map(argument).collect();
            json!({ "name": name, "description": format!("Prompt {name}"), "arguments": arguments })
        });
        Ok(ListPromptsResult::with_all_items(of(json!(prompts))))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let argument = |name: &str| arguments[name].as_str().unwrap_or_default();
        let contents = match request.name.as_str() {
            "test_simple_prompt" => vec![text("This is a simple prompt for testing.")],
            "test_prompt_with_arguments" => {
                let (first, second) = (argument("arg1"), argument("arg2"));
                vec![text(format!("Prompt with arguments: arg1='{first}', arg2='{second}'"))]
            }
            "test_prompt_with_embedded_resource" => {
                let body = "Embedded resource content for testing.";
                let resource = embedded(argument("resourceUri"), "text/plain", body);
                vec![resource, text("Please process the embedded resource above.")]
            }
            "test_prompt_with_image" => vec![image(), text("Please analyze the image above.")],
            "test_input_required_result_prompt" => {
                let answers: InputResponses = request.input_responses.unwrap_or_default();
                let Some(answer) = answers.get("user_context") else {
                    let requests = json!({ "user_context": elicit("context", "string") });
                    return Ok(InputRequiredResult::from_input_requests(of(requests)).into());
                };
                vec![text(format!("Use the following context: {answer}"))]
            }
            name => return Err(unknown(name)),
        };
        let message = |content| json!({ "role": "user", "content": content });
        let messages: Vec<_> = contents.into_iter().map(message).collect();
        Ok(GetPromptResult::new(of(json!(messages))).into())
    }

    async fn complete(
        &self,
        _: CompleteRequestParams,
        _: Context,
    ) -> Result<CompleteResult, ErrorData> {
        Ok(of(json!({ "completion": { "values": [], "total": 0, "hasMore": false } })))
    }

    async fn set_level(&self, _: SetLevelRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _: Context,
    ) -> Result<GetTaskResult, ErrorData> {
        Ok(GetTaskResult::new(self.tasks.get_task(&request.task_id)?))
    }

    async fn update_task(&self, request: UpdateTaskParams, _: Context) -> Result<(), ErrorData> {
        self.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(&self, request: CancelTaskParams, _: Context) -> Result<(), ErrorData> {
        self.tasks.cancel_task(&request.task_id)
    }
}
