//! An MCP server with all that the official conformance suite asks a server for, and a little more:
//! every kind of content, prompts, resources, templates, subscriptions, completion, logging,
//! progress, tasks, and everything that a server can ask a client. What a tool asks, it asks in the
//! words of the era that the request is in: by requests of its own before 2026-07-28, by
//! `input_required` results since.
//!
//! Speaks over standard input and output, or over streamable HTTP with `--listen`.

mod answers;
mod ask;
mod calls;
mod changes;
mod prompts;
mod resources;
mod server;
mod streams;
mod tasks;
mod tools;

use std::{net::SocketAddr, sync::Arc};

use clap::{Parser, ValueEnum};
use rmcp::{
    ServiceExt,
    model::ProtocolVersion,
    transport::{StreamableHttpServerConfig, StreamableHttpService, stdio},
};

use server::{Everything, House};
use streams::Sessions;

#[derive(Parser)]
struct Options {
    /// The protocol eras to speak.
    #[arg(long, value_enum, default_value_t = Era::Both)]
    era: Era,
    /// Serve streamable HTTP at `/mcp` of this address, and print the URL once it can be reached.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Era {
    /// 2025-11-25 and before.
    Legacy,
    /// 2026-07-28.
    Modern,
    Both,
}

impl Era {
    fn revisions(self) -> &'static [ProtocolVersion] {
        match self {
            Self::Legacy => ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25),
            Self::Modern => &[ProtocolVersion::V_2026_07_28],
            Self::Both => ProtocolVersion::KNOWN_VERSIONS,
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { era, listen } = Options::parse();
    let sessions = Arc::new(Sessions::default());
    let house = Arc::new(House::new(era.revisions(), sessions.clone())?);
    let Some(address) = listen else {
        Everything::new(house).serve(stdio()).await?.waiting().await?;
        return Ok(());
    };
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(era != Era::Modern)
        .with_allowed_origins(["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"]);
    let service =
        StreamableHttpService::new(move || Ok(Everything::new(house.clone())), sessions, config);
    let app = axum::Router::new().nest_service("/mcp", service);
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("http://{}/mcp", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
