//! What MCP clients see of the notes.

use std::{borrow::Cow, sync::Arc};

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    handler::server::{
        router::{prompt::PromptRouter, tool::ToolRouter},
        wrapper::{Json, Parameters},
    },
    model::{
        CompleteRequestParams, CompleteResult, CompletionInfo, GetPromptResult, Implementation,
        ListResourceTemplatesResult, ListResourcesResult, PaginatedRequestParams, PromptMessage,
        ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
        Reference, Resource, ResourceContents, ResourceTemplate, Role, ServerCapabilities,
        ServerConfig,
    },
    prompt, prompt_handler, prompt_router,
    service::RequestContext,
    tool, tool_handler, tool_router,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::store::Store;

const URI: &str = "note:///";
const TEMPLATE: &str = "note:///{name}";
const PROMPT: &str = "summarize_notes";
const MARKDOWN: &str = "text/markdown";

/// The server. Clones share their notes.
#[derive(Clone)]
pub struct NotesServer {
    store: Arc<Store>,
    revisions: &'static [ProtocolVersion],
    tools: ToolRouter<Self>,
    prompts: PromptRouter<Self>,
}

impl NotesServer {
    /// A server over these notes that speaks every revision.
    pub fn new(store: Store) -> Self {
        Self {
            store: Arc::new(store),
            revisions: ProtocolVersion::KNOWN_VERSIONS,
            tools: Self::tool_router(),
            prompts: Self::prompt_router(),
        }
    }

    /// The same server, speaking these revisions only.
    pub fn speaking(self, revisions: &'static [ProtocolVersion]) -> Self {
        Self { revisions, ..self }
    }
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    /// The note's name.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9-]+$"))]
    name: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct New {
    /// The note's name.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9-]+$"))]
    name: String,
    /// Its text, in Markdown.
    #[schemars(length(max = 65536))]
    text: String,
    /// Overwrite a note of that name.
    #[serde(default)]
    replace: bool,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Summarize {
    /// The note to summarize. Without: all of them.
    name: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    notes: Vec<Entry>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Entry {
    name: String,
    /// The number of characters of its text.
    #[schemars(with = "i64", range(min = 0))]
    length: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Note {
    name: String,
    text: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Added {
    name: String,
    /// Whether it took the place of another.
    replaced: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Deleted {
    name: String,
}

#[tool_router]
impl NotesServer {
    /// Lists all notes with their lengths.
    #[tool(annotations(title = "List notes", read_only_hint = true, open_world_hint = false))]
    async fn list_notes(&self) -> Json<Listed> {
        let notes = self.store.list().await;
        let notes = notes.into_iter().map(|(name, length)| Entry { name, length }).collect();
        Json(Listed { notes })
    }

    /// Reads one note.
    #[tool(annotations(title = "Read a note", read_only_hint = true, open_world_hint = false))]
    async fn read_note(
        &self,
        Parameters(Named { name }): Parameters<Named>,
    ) -> Result<Json<Note>, String> {
        let text = self.store.read(&name).await.map_err(|failure| failure.to_string())?;
        Ok(Json(Note { name, text }))
    }

    /// Keeps a new note, or overwrites one where `replace` says so.
    #[tool(annotations(
        title = "Add a note",
        read_only_hint = false,
        destructive_hint = false,
        idempotent_hint = true,
        open_world_hint = false
    ))]
    async fn add_note(
        &self,
        Parameters(New { name, text, replace }): Parameters<New>,
    ) -> Result<Json<Added>, String> {
        let added = self.store.add(&name, &text, replace).await;
        let replaced = added.map_err(|failure| failure.to_string())?;
        Ok(Json(Added { name, replaced }))
    }

    /// Deletes one note for good.
    #[tool(annotations(
        title = "Delete a note",
        read_only_hint = false,
        destructive_hint = true,
        idempotent_hint = false,
        open_world_hint = false
    ))]
    async fn delete_note(
        &self,
        Parameters(Named { name }): Parameters<Named>,
    ) -> Result<Json<Deleted>, String> {
        self.store.delete(&name).await.map_err(|failure| failure.to_string())?;
        Ok(Json(Deleted { name }))
    }
}

#[prompt_router]
impl NotesServer {
    /// Asks for a summary of one note, or of all.
    #[prompt(name = "summarize_notes")]
    async fn summarize_notes(
        &self,
        Parameters(Summarize { name }): Parameters<Summarize>,
    ) -> Result<GetPromptResult, ErrorData> {
        let names = match name {
            Some(name) => vec![name],
            None => self.store.list().await.into_iter().map(|(name, _)| name).collect(),
        };
        let mut text = "Summarize these notes in three sentences.\n".to_owned();
        for name in names {
            let note = self.store.read(&name).await;
            let note = note.map_err(|e| ErrorData::invalid_params(e.to_string(), None))?;
            text.push_str(&format!("\n## {name}\n{note}"));
        }
        Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)])
            .with_description("A summary of notes"))
    }
}

#[tool_handler(router = self.tools)]
#[prompt_handler(router = self.prompts)]
impl ServerHandler for NotesServer {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_prompts()
            .enable_resources()
            .enable_completions()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("notes", env!("CARGO_PKG_VERSION")))
            .with_instructions("Keeps short notes in Markdown, each under a name.")
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(self.revisions)
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let names = self.store.list().await.into_iter().map(|(name, _)| name);
        let resources = names
            .map(|name| Resource::new(format!("{URI}{name}"), name).with_mime_type(MARKDOWN))
            .collect();
        Ok(ListResourcesResult::with_all_items(resources))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let template = ResourceTemplate::new(TEMPLATE, "note")
            .with_description("A note by its name")
            .with_mime_type(MARKDOWN);
        Ok(ListResourceTemplatesResult::with_all_items(vec![template]))
    }

    async fn read_resource(
        &self,
        ReadResourceRequestParams { uri, .. }: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let not_found = || ErrorData::resource_not_found("there is no such note", None);
        let name = uri.strip_prefix(URI).ok_or_else(not_found)?;
        let text = self.store.read(name).await.map_err(|_| not_found())?;
        let contents = ResourceContents::text(text, uri).with_mime_type(MARKDOWN);
        Ok(ReadResourceResult::new(vec![contents]).into())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let known = match &request.r#ref {
            Reference::Prompt(prompt) => prompt.name == PROMPT,
            Reference::Resource(template) => template.uri == TEMPLATE,
            _ => false,
        };
        if !known || request.argument.name != "name" {
            return Err(ErrorData::invalid_params("there is nothing to complete here", None));
        }
        let names = self.store.list().await.into_iter().map(|(name, _)| name);
        let mut values: Vec<_> =
            names.filter(|name| name.starts_with(&request.argument.value)).collect();
        let total = u32::try_from(values.len()).ok();
        let more = values.len() > CompletionInfo::MAX_VALUES;
        values.truncate(CompletionInfo::MAX_VALUES);
        let info = CompletionInfo::with_pagination(values, total, more)
            .map_err(|e| ErrorData::internal_error(e, None))?;
        Ok(CompleteResult::new(info))
    }
}

#[cfg(test)]
mod tests {
    use rmcp::{
        ClientServiceExt, RoleClient, ServiceExt,
        model::{ArgumentInfo, CallToolRequestParams, GetPromptRequestParams},
        service::{ClientLifecycleMode, RunningService},
    };
    use serde_json::{Value, json};

    use super::*;

    async fn connect(
        revisions: &'static [ProtocolVersion],
        lifecycle: ClientLifecycleMode,
    ) -> RunningService<RoleClient, ()> {
        let (near, far) = tokio::io::duplex(65_536);
        let server = NotesServer::new(Store::in_memory()).speaking(revisions);
        tokio::spawn(async move { server.serve(far).await.unwrap().waiting().await });
        ().serve_with_lifecycle(near, lifecycle).await.unwrap()
    }

    async fn each_era() -> [RunningService<RoleClient, ()>; 2] {
        let modern = ClientLifecycleMode::Discover {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        };
        [
            connect(
                ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25),
                ClientLifecycleMode::Initialize,
            )
            .await,
            connect(&[ProtocolVersion::V_2026_07_28], modern).await,
        ]
    }

    async fn call(
        client: &RunningService<RoleClient, ()>,
        tool: &'static str,
        arguments: Value,
    ) -> (Option<bool>, Option<Value>) {
        let arguments = arguments.as_object().unwrap().clone();
        let request = CallToolRequestParams::new(tool).with_arguments(arguments);
        let result = client.call_tool(request).await.unwrap();
        (result.is_error, result.structured_content)
    }

    #[tokio::test]
    async fn tools_work_in_both_eras() {
        for client in each_era().await {
            let tools = client.list_all_tools().await.unwrap();
            assert_eq!(tools.len(), 4);
            for tool in &tools {
                assert!(tool.output_schema.is_some(), "{}", tool.name);
                let hints = tool.annotations.as_ref().unwrap();
                assert_eq!(hints.destructive_hint == Some(true), tool.name == "delete_note");
            }
            let added = call(&client, "add_note", json!({"name": "n", "text": "t"})).await;
            assert_eq!(added, (Some(false), Some(json!({"name": "n", "replaced": false}))));
            let read = call(&client, "read_note", json!({"name": "n"})).await;
            assert_eq!(read, (Some(false), Some(json!({"name": "n", "text": "t"}))));
            let deleted = call(&client, "delete_note", json!({"name": "n"})).await;
            assert_eq!(deleted, (Some(false), Some(json!({"name": "n"}))));
            let gone = call(&client, "read_note", json!({"name": "n"})).await;
            assert_eq!(gone, (Some(true), None));
        }
    }

    #[tokio::test]
    async fn prompts_resources_and_completion_work_in_both_eras() {
        for client in each_era().await {
            let request = GetPromptRequestParams::new(PROMPT);
            let prompt = format!("{:?}", client.get_prompt(request).await.unwrap());
            assert!(prompt.contains("two lemons") && prompt.contains("Welcome"));
            assert_eq!(client.list_all_resources().await.unwrap().len(), 2);
            assert_eq!(client.list_all_resource_templates().await.unwrap().len(), 1);
            let request = ReadResourceRequestParams::new("note:///welcome");
            let read = format!("{:?}", client.read_resource(request).await.unwrap());
            assert!(read.contains("behind Portcullis"));
            let missing = ReadResourceRequestParams::new("note:///none");
            assert!(client.read_resource(missing).await.is_err());
            for reference in [Reference::for_prompt(PROMPT), Reference::for_resource(TEMPLATE)] {
                let request =
                    CompleteRequestParams::new(reference, ArgumentInfo::new("name", "we"));
                let values = client.complete(request).await.unwrap().completion.values;
                assert_eq!(values, ["welcome"]);
            }
        }
    }
}
