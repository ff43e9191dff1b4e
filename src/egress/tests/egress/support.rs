//! Egress proxy with hosts around it.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use portcullis_egress::{
    Attempt, Destination, Destinations, Egress, End, Forbidden, Gate, GateContext, Limits,
    Listener, Outcome, Resolver, Verdict,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls};

/// Time limit for anything that must happen.
pub const SOON: Duration = Duration::from_secs(60);

/// Allows all hosts except `policy.example`, never decides about `undecided.example`, and keeps the
/// reported outcomes.
pub struct Recorder {
    reported: mpsc::UnboundedSender<Outcome>,
    pub requested: Mutex<Vec<Attempt>>,
    /// Revoked host.
    forbidden: Mutex<Option<String>>,
    changed: Notify,
}

#[async_trait]
impl Gate for Recorder {
    async fn decide(&self, attempt: &Attempt) -> Verdict {
        self.requested.lock().unwrap().push(attempt.clone());
        match attempt.host.to_string().as_str() {
            "policy.example" => Verdict::Refuse("policy does not permit it".into()),
            "undecided.example" => std::future::pending().await,
            _ => Verdict::Allow,
        }
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }

    fn still(&self, attempt: &Attempt) -> Verdict {
        let forbidden = self.forbidden.lock().unwrap();
        if forbidden.as_deref() != Some(&attempt.host.to_string()) {
            return Verdict::Allow;
        }
        let grounds: GateContext = Arc::new("grounds");
        Verdict::Refuse(Forbidden { why: "no longer".into(), grounds: Some(grounds) })
    }

    fn report(&self, outcome: Outcome) {
        let _ = self.reported.send(outcome);
    }
}

impl Recorder {
    /// Recorder and the channel of its outcomes.
    pub fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Outcome>) {
        let (reported, receiver) = mpsc::unbounded_channel();
        let new = Self {
            reported,
            requested: Mutex::default(),
            forbidden: Mutex::default(),
            changed: Notify::new(),
        };
        (Arc::new(new), receiver)
    }

    /// Revokes a host.
    pub fn forbid(&self, host: &str) {
        *self.forbidden.lock().unwrap() = Some(host.to_owned());
        self.changed.notify_one();
    }
}

/// Resolver with scripted answers: each lookup gets the next answer, and the last one repeatedly.
#[derive(Default)]
pub struct Names {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    pub requested: Mutex<Vec<String>>,
}

impl Names {
    pub fn know(&self, name: &str, answers: &[&[&str]]) {
        let parsed = |answer: &&[&str]| answer.iter().map(|text| text.parse().unwrap()).collect();
        self.answers.lock().unwrap().insert(name.into(), answers.iter().map(parsed).collect());
    }
}

#[async_trait]
impl Resolver for Names {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.requested.lock().unwrap().push(name.to_owned());
        let mut answers = self.answers.lock().unwrap();
        match answers.get_mut(name) {
            Some(all) if all.len() > 1 => Ok(all.remove(0)),
            Some(all) => Ok(all[0].clone()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// A listening egress proxy.
pub struct World {
    pub egress: Arc<Egress>,
    pub gate: Arc<Recorder>,
    pub names: Arc<Names>,
    pub proxy: SocketAddr,
    reported: tokio::sync::Mutex<mpsc::UnboundedReceiver<Outcome>>,
}

impl World {
    pub async fn new(destinations: &[String], limits: Limits) -> Self {
        let all: Vec<Destination> = destinations.iter().map(|text| text.parse().unwrap()).collect();
        let (gate, receiver) = Recorder::new();
        let names = Arc::new(Names::default());
        let all = Destinations::new(all).unwrap();
        let egress = Egress::new("notes", all, limits, gate.clone(), names.clone());
        let egress = Arc::new(egress);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = listener.local_addr().unwrap();
        tokio::spawn({
            let egress = egress.clone();
            async move { egress.proxy(Listener::Tcp(listener)).await }
        });
        tokio::spawn({
            let egress = egress.clone();
            async move { egress.review().await }
        });
        Self { egress, gate, names, proxy, reported: tokio::sync::Mutex::new(receiver) }
    }

    /// Another socket, at which a program expects a host.
    pub async fn direct(&self, host: &str, port: u16) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (egress, host) = (self.egress.clone(), host.parse().unwrap());
        tokio::spawn(async move { egress.direct(Listener::Tcp(listener), host, port).await });
        address
    }

    /// Next reported outcome.
    pub async fn reported(&self) -> Outcome {
        timeout(SOON, async { self.reported.lock().await.recv().await })
            .await
            .expect("it is reported soon")
            .expect("the gate lives")
    }

    /// Requests a tunnel from the proxy.
    pub async fn ask_for(&self, host: &str, port: u16) -> TcpStream {
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        let ask = format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream
    }

    /// Tunnel through the proxy.
    pub async fn tunnel(&self, host: &str, port: u16) -> TcpStream {
        let mut stream = self.ask_for(host, port).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(SOON, stream.read_u8()).await.unwrap().unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        stream
    }

    /// Sends data to the proxy, closes the sending side, and returns the answer.
    pub async fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        exchange(self.proxy, bytes).await
    }
}

/// Code of a refusal, or how else it ended.
pub fn code(outcome: &Outcome) -> String {
    match &outcome.end {
        End::Refused(refusal) => refusal.code().to_owned(),
        other => format!("{other:?}"),
    }
}

/// Sends data, closes the sending side, and returns the answer.
pub async fn exchange(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, async {
        // The connection may be refused before everything was sent.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut answer).await;
    })
    .await
    .expect("it ends");
    answer
}

/// Host that answers every HTTP request with the request itself, and keeps it.
pub struct Origin {
    pub port: u16,
    pub received: Arc<Mutex<Vec<u8>>>,
    /// Certificate, if it uses TLS.
    pub certificate: String,
}

impl Origin {
    pub async fn clear() -> Self {
        Self::start(None, String::new()).await
    }

    pub async fn tls(name: &str) -> Self {
        Self::with_groups(name, None).await
    }

    /// Host that supports no key share that a rustls client offers first, and so requests another
    /// ClientHello.
    pub async fn tls_with_hello_retry(name: &str) -> Self {
        Self::with_groups(name, Some(rustls::crypto::ring::kx_group::SECP384R1)).await
    }

    async fn with_groups(
        name: &str,
        group: Option<&'static dyn rustls::crypto::SupportedKxGroup>,
    ) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let mut provider = rustls::crypto::ring::default_provider();
        provider.kx_groups = group.map_or(provider.kx_groups, |group| vec![group]);
        let provider = Arc::new(provider);
        let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), cert.pem()).await
    }

    async fn start(tls: Option<TlsAcceptor>, certificate: String) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let received: Arc<Mutex<Vec<u8>>> = Arc::default();
        let all = received.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (all, tls) = (all.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                echo(stream, all).await;
                            }
                        }
                        None => echo(stream, all).await,
                    }
                });
            }
        });
        Self { port, received, certificate }
    }

    pub fn received(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap()).into_owned()
    }
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin, all: Arc<Mutex<Vec<u8>>>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(read) if read > 0 => {
                request.extend(&part[..read]);
                all.lock().unwrap().extend(&part[..read]);
            }
            _ => return,
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        request.len()
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&request).await;
    let _ = stream.shutdown().await;
}
