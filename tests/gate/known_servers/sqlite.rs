//! mcp-server-sqlite, written with the first SDK.

use std::fs;

use serde_json::json;

use super::{contained, mode, open_folder, stop_without_orphans};
use crate::support::gate::Setup;

const PROGRAM: [&str; 3] = ["python3", "-c", "import mcp_server_sqlite as it; it.main()"];

fn sqlite(more: &str) -> Setup {
    let command = [&PROGRAM[..], &["--db-path", "/data/shop.db"]].concat();
    contained("db", &command, &format!("env.PYTHONPATH = \"/opt/sqlite\"\n{more}"))
}

#[tokio::test]
async fn mounted_database_is_created_filled_and_queried() {
    let folder = open_folder();
    let gate =
        sqlite(&format!("mounts = [\"{}:/data:rw\"]", folder.path().display())).start().await;
    let agent = gate.legacy().await;
    let query = async |tool: &str, query: &str| {
        agent.text(&format!("db__{tool}"), json!({ "query": query })).await
    };
    query("create_table", "CREATE TABLE wares (name TEXT, price INTEGER)").await;
    query("write_query", "INSERT INTO wares VALUES ('nails', 3), ('boards', 12)").await;
    let found = query("read_query", "SELECT name FROM wares WHERE price > 5").await;
    assert!(found.contains("boards") && !found.contains("nails"), "{found}");
    let tables = agent.text("db__list_tables", json!({})).await;
    assert!(tables.contains("wares"), "{tables}");
    let columns = agent.text("db__describe_table", json!({ "table_name": "wares" })).await;
    assert!(columns.contains("price"), "{columns}");
    agent.text("db__append_insight", json!({ "insight": "boards are dear" })).await;
    let memo = agent.ask("resources/read", json!({ "uri": "memo://insights" })).await.unwrap();
    assert!(memo.to_string().contains("boards are dear"), "{memo:#}");
    // The database is a file of the host's, with what it had to write besides.
    assert!(fs::read(folder.path().join("shop.db")).unwrap().starts_with(b"SQLite format 3"));
    stop_without_orphans(gate).await;
}

#[tokio::test]
async fn database_in_a_read_only_mount_is_not_written() {
    let folder = open_folder();
    let gate =
        sqlite(&format!("mounts = [\"{}:/data:rw\"]", folder.path().display())).start().await;
    let agent = gate.legacy().await;
    let create = json!({ "query": "CREATE TABLE wares (name TEXT)" });
    agent.text("db__create_table", create.clone()).await;
    stop_without_orphans(gate).await;

    mode(&folder.path().join("shop.db"), 0o444);
    let gate = sqlite(&format!("mounts = [\"{}:/data\"]", folder.path().display())).start().await;
    let agent = gate.legacy().await;
    let tables = agent.text("db__list_tables", json!({})).await;
    assert!(tables.contains("wares"), "{tables}");
    let insert = json!({ "query": "INSERT INTO wares VALUES ('nails')" });
    // This server has no errors; it says them.
    let said = agent.text("db__write_query", insert).await;
    assert!(said.contains("attempt to write a readonly database"), "{said}");
    stop_without_orphans(gate).await;
}
