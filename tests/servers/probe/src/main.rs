//! An MCP server that tries what a confined server should not be able to do, and tells what it
//! could. Its one tool, `probe`, and `probe --print` give the same report.
//!
//! It harms nothing where it succeeds: files that it makes it removes, and system calls are tried
//! with arguments that do nothing. It connects to loopback and to the gateway only.

mod attempts;
mod report;
mod surroundings;

use rmcp::{
    ServerHandler, ServiceExt,
    handler::server::{router::tool::ToolRouter, wrapper::Json},
    model::{Implementation, ServerCapabilities, ServerConfig},
    tool, tool_handler, tool_router,
    transport::stdio,
};

use report::Report;

#[derive(Clone)]
struct Probe {
    tools: ToolRouter<Self>,
}

#[tool_router(router = tool_router)]
impl Probe {
    /// Tries what a confined server should not be able to do, and tells what it could.
    #[tool(annotations(read_only_hint = true, open_world_hint = false))]
    async fn probe(&self) -> Result<Json<Report>, String> {
        // Off the runtime's own threads: attempts to connect take their time.
        tokio::task::spawn_blocking(Report::take).await.map(Json).map_err(|error| error.to_string())
    }
}

#[tool_handler(router = self.tools)]
impl ServerHandler for Probe {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("probe", env!("CARGO_PKG_VERSION")))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("--print") {
        serde_json::to_writer_pretty(std::io::stdout().lock(), &Report::take())?;
        return Ok(());
    }
    let probe = Probe { tools: Probe::tool_router() };
    probe.serve(stdio()).await?.waiting().await?;
    Ok(())
}
