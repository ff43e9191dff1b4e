//! The handler of every request.

#![expect(deprecated, reason = "what 2026-07-28 deprecates or drops has to work before it")]

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CancelTaskParams, CompleteRequestParams,
        CompleteResult, CompletionInfo, ContentBlock, GetPromptRequestParams, GetPromptResponse,
        GetTaskParams, GetTaskResult, Implementation, InitializeRequestParams, InitializeResult,
        ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult, ListToolsResult,
        LoggingLevel, PaginatedRequestParams, ProtocolVersion, ReadResourceRequestParams,
        ReadResourceResponse, ReadResourceResult, Reference, RequestStateCodec, ResourceContents,
        ServerCapabilities, ServerConfig, SetLevelRequestMethod, SetLevelRequestParams,
        SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
        UpdateTaskParams,
    },
    service::{NotificationContext, RequestContext, SubscriptionContext},
    task_manager::TaskManager,
};
use serde_json::json;
use tokio::sync::broadcast;

use crate::{
    ask::{Gathered, Round, elicit, is_modern, only},
    changes::{self, Change, Watched},
    prompts, resources,
    streams::Sessions,
    tools,
};

/// What all clients share.
pub struct House {
    revisions: &'static [ProtocolVersion],
    pub sessions: Arc<Sessions>,
    pub codec: RequestStateCodec,
    pub tasks: TaskManager,
    changes: broadcast::Sender<Change>,
    tools_changed: AtomicBool,
    prompts_changed: AtomicBool,
}

impl House {
    pub fn new(
        revisions: &'static [ProtocolVersion],
        sessions: Arc<Sessions>,
    ) -> anyhow::Result<Self> {
        let mut key = [0; RequestStateCodec::MIN_KEY_LENGTH];
        getrandom::fill(&mut key).map_err(|e| anyhow::anyhow!("no random key: {e}"))?;
        Ok(Self {
            revisions,
            sessions,
            codec: RequestStateCodec::try_new(key)?,
            tasks: TaskManager::new(),
            changes: broadcast::Sender::new(64),
            tools_changed: AtomicBool::new(false),
            prompts_changed: AtomicBool::new(false),
        })
    }

    /// Changes something, and tells of it.
    pub fn change(&self, change: Change) {
        match change {
            Change::Tools => _ = self.tools_changed.fetch_not(Ordering::SeqCst),
            Change::Prompts => _ = self.prompts_changed.fetch_not(Ordering::SeqCst),
            Change::Resources | Change::Contents(_) => {}
        }
        // An error says that nobody listens.
        let _ = self.changes.send(change);
    }

    fn tools(&self) -> Vec<Tool> {
        tools::list(self.tools_changed.load(Ordering::SeqCst))
    }
}

/// The server of one session, or of one request without.
#[derive(Clone)]
pub struct Everything {
    pub house: Arc<House>,
    watched: Watched,
    /// The session's, where it has set one.
    pub level: Arc<Mutex<Option<LoggingLevel>>>,
}

impl Everything {
    pub fn new(house: Arc<House>) -> Self {
        Self { house, watched: Watched::default(), level: Arc::default() }
    }
}

impl ServerHandler for Everything {
    fn get_info(&self) -> ServerConfig {
        let mut capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_list_changed()
            .enable_resources_subscribe()
            .enable_completions()
            .enable_logging()
            .enable_tasks()
            .build();
        // Tasks of this kind are of 2026-07-28.
        if !self.house.revisions.contains(&ProtocolVersion::V_2026_07_28) {
            capabilities.extensions = None;
        }
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("everything", env!("CARGO_PKG_VERSION")))
            .with_instructions("Has something of everything.")
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(self.house.revisions)
    }

    async fn initialize(
        &self,
        request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        context.peer.set_peer_info(request.clone());
        let mut result = self.negotiate_initialize(&request)?;
        result.capabilities.extensions = None;
        Ok(result)
    }

    async fn on_initialized(&self, context: NotificationContext<RoleServer>) {
        let changes = self.house.changes.subscribe();
        tokio::spawn(changes::tell_session(context.peer, self.watched.clone(), changes));
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if is_modern(&context) {
            return Err(ErrorData::method_not_found::<SetLevelRequestMethod>());
        }
        *self.level.lock() = Some(request.level);
        Ok(())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let known: &[&str] = match &request.r#ref {
            Reference::Prompt(prompt) if prompt.name == prompts::WITH_ARGUMENTS => {
                &["paris", "park", "party", "testValue1"]
            }
            Reference::Resource(template) if template.uri == resources::TEMPLATE => {
                &["123", "124", "200"]
            }
            _ => return Err(ErrorData::invalid_params("there is nothing to complete here", None)),
        };
        let begun = request.argument.value.as_str();
        let values = known.iter().filter(|value| value.starts_with(begun));
        let values = values.map(|value| (*value).to_owned()).collect();
        let info = CompletionInfo::with_all_values(values);
        Ok(CompleteResult::new(info.map_err(|e| ErrorData::internal_error(e, None))?))
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.house.tools()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.house.tools().into_iter().find(|tool| tool.name == name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        if self.get_tool(&request.name).is_none() {
            let message = format!("there is no tool {}", request.name);
            return Err(ErrorData::invalid_params(message, None));
        }
        self.call(&request, &context).await
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        let changed = self.house.prompts_changed.load(Ordering::SeqCst);
        Ok(ListPromptsResult::with_all_items(prompts::list(changed)))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name != prompts::ASKING {
            return Ok(prompts::get(&request.name, request.arguments.as_ref())?.into());
        }
        let form = json!({"context": {"type": "string"}});
        let question = only("user_context", elicit("What context should the prompt use?", form));
        let round = Round {
            context: &context,
            given: request.input_responses.as_ref(),
            state: request.request_state.as_deref(),
            codec: &self.house.codec,
        };
        Ok(match round.gather(question).await? {
            Gathered::All(answers) => {
                let text = format!("Use this context: {}", answers["user_context"]["content"]);
                prompts::messages(vec![ContentBlock::text(text)]).into()
            }
            Gathered::Missing(missing) => round.asking(missing, &())?.into(),
        })
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(resources::list()))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(resources::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let uri = request.uri;
        if uri != resources::ASKING {
            let not_found = || {
                let data = json!({"uri": uri});
                ErrorData::resource_not_found("there is no such resource", Some(data))
            };
            let contents = resources::read(&uri).ok_or_else(not_found)?;
            return Ok(ReadResourceResult::new(vec![contents]).into());
        }
        let form = json!({"reason": {"type": "string"}});
        let round = Round {
            context: &context,
            given: request.input_responses.as_ref(),
            state: request.request_state.as_deref(),
            codec: &self.house.codec,
        };
        Ok(match round.gather(only("reason", elicit("Why do you read this?", form))).await? {
            Gathered::All(answers) => {
                let text = format!("Read because of {}", answers["reason"]["content"]);
                let contents = ResourceContents::text(text, uri).with_mime_type("text/plain");
                ReadResourceResult::new(vec![contents]).into()
            }
            Gathered::Missing(missing) => round.asking(missing, &())?.into(),
        })
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.watched.lock().insert(request.uri);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.watched.lock().remove(&request.uri);
        Ok(())
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.house.changes.subscribe();
        loop {
            tokio::select! {
                () = context.cancelled() => return Ok(()),
                change = changes.recv() => match change {
                    Ok(change) => changes::tell_stream(context.sink(), change).await,
                    // What was missed cannot be told, so the client has to begin anew.
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        Ok(GetTaskResult::new(self.house.tasks.get_task(&request.task_id)?))
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.house.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.house.tasks.cancel_task(&request.task_id)
    }
}
