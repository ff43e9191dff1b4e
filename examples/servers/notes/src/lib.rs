//! A small MCP server that keeps notes: the example behind the quickstart.
//!
//! It has one of everything that a proxy must carry: tools with input and output schemas and
//! annotations, a prompt whose argument can be completed, resources and a resource template. It
//! speaks every revision that rmcp knows, with `initialize` (to 2025-11-25) and without
//! (2026-07-28).
//!
//! Notes live in memory, or as `NAME.md` files in the folder that `NOTES_DIR` names.

mod server;
mod store;

use std::path::PathBuf;

use rmcp::{ServiceExt, transport::stdio};

pub use server::NotesServer;
pub use store::{Failure, Store};

/// Serves one client over standard input and output until the input ends.
///
/// # Errors
/// A notes folder that cannot be read, or a broken pipe.
pub async fn serve_stdio() -> anyhow::Result<()> {
    let store = match std::env::var_os("NOTES_DIR") {
        Some(dir) => Store::in_folder(PathBuf::from(dir)).await?,
        None => Store::in_memory(),
    };
    NotesServer::new(store).serve(stdio()).await?.waiting().await?;
    Ok(())
}
