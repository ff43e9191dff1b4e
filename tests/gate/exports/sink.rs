//! An HTTP endpoint that takes records, or does not, as the test says.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Well,
    /// With this status.
    Status(u16),
    /// Never.
    Hanging,
    /// `413` to more than so many lines.
    AtMost(usize),
    /// Well, and `429` with `Retry-After` to every second request.
    Busy,
}

/// One request that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What the sink has, over all of its lives.
pub struct Sink {
    shared: Arc<Shared>,
    pub address: SocketAddr,
    serving: Option<JoinHandle<()>>,
}

struct Shared {
    manner: watch::Sender<Manner>,
    taken: Mutex<Vec<Taken>>,
    asked: AtomicUsize,
}

impl Sink {
    pub async fn start(manner: Manner) -> Self {
        let shared = Arc::new(Shared {
            manner: watch::channel(manner).0,
            taken: Mutex::default(),
            asked: AtomicUsize::new(0),
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut sink = Self { shared, address, serving: None };
        sink.restart().await;
        sink
    }

    /// Listens again where it did.
    pub async fn restart(&mut self) {
        self.stop().await;
        let listener = crate::support::until("the sink's port", async || {
            TcpListener::bind(self.address).await.ok()
        })
        .await;
        self.address = listener.local_addr().unwrap();
        let routes = Router::new().fallback(take).with_state(self.shared.clone());
        self.serving = Some(tokio::spawn(async move {
            axum::serve(listener, routes).await.unwrap();
        }));
    }

    /// Is gone, with its connections.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    pub fn behave(&self, manner: Manner) {
        self.shared.manner.send_replace(manner);
    }

    /// Requests that came, whatever the answer.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.shared.taken.lock().clone()
    }

    /// Records that were acknowledged, of a sink of JSON lines.
    pub fn records(&self) -> BTreeMap<u64, String> {
        let taken = self.taken();
        super::by_seq(
            taken.iter().flat_map(|taken| std::str::from_utf8(&taken.body).unwrap().lines()),
        )
    }

    /// How many lines were acknowledged.
    pub fn lines(&self) -> usize {
        self.taken().iter().map(|taken| memchr::memchr_iter(b'\n', &taken.body).count()).sum()
    }
}

async fn take(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let asked = shared.asked.fetch_add(1, Ordering::Relaxed);
    let manner = *shared.manner.borrow();
    let lines = memchr::memchr_iter(b'\n', &body).count();
    match manner {
        Manner::Hanging => {
            // Until it behaves: what hung so long is not acknowledged.
            let mut manner = shared.manner.subscribe();
            let _ = manner.wait_for(|manner| *manner != Manner::Hanging).await;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        Manner::Status(status) => return StatusCode::from_u16(status).unwrap().into_response(),
        Manner::AtMost(most) if lines > most => {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        }
        Manner::Busy if asked % 2 == 0 => {
            return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response();
        }
        Manner::Well | Manner::AtMost(_) | Manner::Busy => {}
    }
    shared.taken.lock().push(Taken { headers, body });
    StatusCode::OK.into_response()
}
