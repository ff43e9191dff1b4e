//! A registry whose requests a test can delay.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Proxy before a registry that delays some requests until `let_go` is true.
pub struct Held {
    pub host: String,
    pub let_go: Arc<watch::Sender<bool>>,
    /// Changes with every delayed request.
    pub holds: watch::Receiver<()>,
}

impl Held {
    /// Delays the requests that contain all of these words.
    pub async fn of(registry: &str, words: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let let_go = Arc::new(watch::Sender::new(true));
        let (holding, holds) = watch::channel(());
        let holding = Arc::new(holding);
        let (gate, registry) = (let_go.clone(), registry.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut open, registry) = (gate.subscribe(), registry.clone());
                let holding = holding.clone();
                tokio::spawn(async move {
                    let (mut from, mut back) = client.into_split();
                    let (mut answers, mut to) =
                        TcpStream::connect(registry).await.unwrap().into_split();
                    tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
                    let mut bytes = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = from.read(&mut bytes).await {
                        let text = String::from_utf8_lossy(&bytes[..n]);
                        if words.iter().all(|word| text.contains(word)) && !*open.borrow() {
                            holding.send_replace(());
                            let _ = open.wait_for(|open| *open).await;
                        }
                        if to.write_all(&bytes[..n]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { host, let_go, holds }
    }

    /// Delays an engine's requests for blobs.
    pub async fn blobs(registry: &str) -> Self {
        Self::of(registry, &["/blobs/", "docker/"]).await
    }
}
