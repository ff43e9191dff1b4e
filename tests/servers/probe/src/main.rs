//! An MCP server that tries what a confined server should not be able to do, and tells what it
//! could. Its one tool, `probe`, and `probe --print` give the same report. `probe --attempts` goes
//! further: see [`escapes`]. `probe --first HOST:PORT` asks that host for a page and does nothing else.
//!
//! It harms nothing where it succeeds: files that it makes it removes, and system calls are tried
//! with arguments that do nothing. It connects to loopback and to the gateway only.

mod attempts;
mod escapes;
mod report;
mod surroundings;

use std::io::{Read, Write};

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

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Without a runtime around them: there are calls that a process with threads may not make.
    match words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("--first", [place])) => first(place),
        Some(("--print", _)) => print(&Report::take()),
        Some(("--attempts", rest)) => print(&escapes::attempts(rest)),
        Some(("--attempt", rest)) => {
            println!("{}", escapes::attempt(rest));
            Ok(())
        }
        Some(("--watch", _)) => print(&escapes::watch()),
        Some(("--ids", _)) => {
            println!("{}", surroundings::ids());
            Ok(())
        }
        // Both reports, and then it stays until its input ends: for who looks at it from outside.
        Some(("--stay", rest)) => {
            let all = serde_json::json!({
                "report": Report::take(),
                "attempts": escapes::attempts(rest),
            });
            println!("{all}");
            std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
            Ok(())
        }
        _ => serve(),
    }
}

/// Asks a host for a page in HTTP before anything else, and prints what comes.
fn first(place: &str) -> anyhow::Result<()> {
    let mut stream = std::net::TcpStream::connect(place)?;
    write!(stream, "GET /first HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    // The host may leave it open.
    let _ = stream.read_to_string(&mut answer);
    println!("{answer}");
    Ok(())
}

fn print(report: &impl serde::Serialize) -> anyhow::Result<()> {
    Ok(serde_json::to_writer_pretty(std::io::stdout().lock(), report)?)
}

#[tokio::main]
async fn serve() -> anyhow::Result<()> {
    let probe = Probe { tools: Probe::tool_router() };
    probe.serve(stdio()).await?.waiting().await?;
    Ok(())
}
