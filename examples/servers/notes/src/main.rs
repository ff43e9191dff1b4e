#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    notes_server::serve_stdio().await
}
