//! The notes server as a remote server: streamable HTTP on loopback, in one era or both.

use std::net::SocketAddr;

use notes_server::{NotesServer, Store};
use rmcp::{
    model::ProtocolVersion,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};
use tokio::net::TcpListener;

/// The revisions with `initialize`.
pub fn legacy() -> &'static [ProtocolVersion] {
    ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25)
}

/// The revision without `initialize`.
pub const MODERN: &[ProtocolVersion] = &[ProtocolVersion::V_2026_07_28];

/// Serves until the test ends. Returns the URL.
pub async fn serve(revisions: &'static [ProtocolVersion]) -> String {
    let server = NotesServer::new(Store::in_memory()).speaking(revisions);
    let config = StreamableHttpServerConfig::default();
    let sessions = std::sync::Arc::new(LocalSessionManager::default());
    let service = StreamableHttpService::new(move || Ok(server.clone()), sessions, config);
    let app = axum::Router::new().nest_service("/mcp", service);
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{addr}/mcp")
}
