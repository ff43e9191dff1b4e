//! Remote servers of rmcp: streamable HTTP on loopback.

use std::net::SocketAddr;

use axum::{
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::IntoResponse,
};
use notes_server::{NotesServer, Store};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ListToolsResult,
        PaginatedRequestParams, ProtocolVersion, ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

/// The revisions with `initialize`.
pub fn legacy() -> &'static [ProtocolVersion] {
    ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25)
}

/// The revision without `initialize`.
pub const MODERN: &[ProtocolVersion] = &[ProtocolVersion::V_2026_07_28];

/// Serves the notes server in these revisions until the test ends. Returns the URL.
pub async fn serve(revisions: &'static [ProtocolVersion]) -> String {
    let server = NotesServer::new(Store::in_memory()).speaking(revisions);
    let config = StreamableHttpServerConfig::default();
    let sessions = std::sync::Arc::new(LocalSessionManager::default());
    let service = StreamableHttpService::new(move || Ok(server.clone()), sessions, config);
    let app = axum::Router::new().nest_service("/mcp", service);
    listen(app).await
}

/// Serves until the test ends. Returns the URL of `/mcp`.
async fn listen(app: axum::Router) -> String {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{addr}/mcp")
}

/// A server without sessions: each call has a stream of its own, and the server's requests are
/// numbered from 0 on each. Its tool `ask` requests the client's roots, and returns once two
/// answers have come in.
pub async fn asking() -> String {
    let answers = watch::Sender::new(0);
    let asking = Asking(answers.clone());
    let config = StreamableHttpServerConfig::default().with_legacy_session_mode(false);
    let sessions = std::sync::Arc::new(LocalSessionManager::default());
    let service = StreamableHttpService::new(move || Ok(asking.clone()), sessions, config);
    // rmcp itself refuses answers where there are no sessions.
    let count = move |request: Request, next: Next| {
        let answers = answers.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let message: Value = serde_json::from_slice(&body).unwrap_or_default();
            if !message["result"]["roots"].is_null() {
                assert_eq!(message["id"], 0);
                answers.send_modify(|count| *count += 1);
                return StatusCode::ACCEPTED.into_response();
            }
            next.run(Request::from_parts(parts, body.into())).await
        }
    };
    let app = axum::Router::new().nest_service("/mcp", service).layer(middleware::from_fn(count));
    listen(app).await
}

/// The handler of [`asking`], with the number of answers.
#[derive(Clone)]
struct Asking(watch::Sender<usize>);

impl ServerHandler for Asking {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = serde_json::from_value(json!({ "type": "object" })).unwrap();
        let tool = Tool::new("ask", "Asks for the client's roots", std::sync::Arc::new(schema));
        Ok(ListToolsResult::with_all_items(vec![tool]))
    }

    #[expect(deprecated, reason = "servers before 2026-07-28 ask for roots")]
    async fn call_tool(
        &self,
        _: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let mut answers = self.0.subscribe();
        tokio::select! {
            // Never answered, as the answer names no stream.
            roots = context.peer.list_roots() => panic!("{roots:?}"),
            count = answers.wait_for(|count| *count == 2) => drop(count.unwrap()),
        }
        Ok(CallToolResult::success(vec![ContentBlock::text("asked")]).into())
    }
}

/// A server of all revisions that offers the tool `draft` only to clients that accept sampling, and
/// `echo` to all.
pub async fn offering() -> String {
    let sessions = std::sync::Arc::new(LocalSessionManager::default());
    let config = StreamableHttpServerConfig::default();
    let service = StreamableHttpService::new(|| Ok(Offering), sessions, config);
    let app = axum::Router::new().nest_service("/mcp", service);
    listen(app).await
}

/// The handler of [`offering`].
#[derive(Clone)]
struct Offering;

impl ServerHandler for Offering {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tool = |name: &'static str| {
            let schema = serde_json::from_value(json!({ "type": "object" })).unwrap();
            Tool::new(name, "Returns its name", std::sync::Arc::new(schema))
        };
        let mut tools = vec![tool("echo")];
        let capabilities = context.client_capabilities().unwrap_or_default();
        tools.extend(capabilities.sampling.map(|_| tool("draft")));
        Ok(ListToolsResult::with_all_items(tools))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        Ok(CallToolResult::success(vec![ContentBlock::text(request.name.to_string())]).into())
    }
}
