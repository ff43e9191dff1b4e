//! The notes server in one protocol era: `one-era legacy` or `one-era modern`.

use notes_server::{NotesServer, Store};
use rmcp::{ServiceExt, model::ProtocolVersion, transport::stdio};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let revisions: &[ProtocolVersion] = match std::env::args().nth(1).as_deref() {
        Some("legacy") => ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25),
        Some("modern") => &[ProtocolVersion::V_2026_07_28],
        other => anyhow::bail!("no such era: {other:?}"),
    };
    let server = NotesServer::new(Store::in_memory()).speaking(revisions);
    server.serve(stdio()).await?.waiting().await?;
    Ok(())
}
