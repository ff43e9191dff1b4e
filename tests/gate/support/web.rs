//! A web server on this machine, in clear text or over TLS, with pages of the test.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    http::{HeaderMap, StatusCode, Uri, header},
    response::IntoResponse,
    serve::Listener,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::authority::Authority;

/// Content of a path: its type and its bytes.
pub type Page = (&'static str, Vec<u8>);

/// A web server that ends with the test's runtime.
pub struct Web {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Web {
    /// Serves at this address the page that `page` returns for a host and a path.
    pub async fn serve(
        at: &str,
        tls: Option<&Authority>,
        page: impl Fn(&str, &str) -> Option<Page> + Send + Sync + 'static,
    ) -> Self {
        let tcp = TcpListener::bind(at).await.unwrap_or_else(|error| panic!("{at}: {error}"));
        let address = tcp.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (notes, page) = (seen.clone(), Arc::new(page));
        let router = Router::new().fallback(move |uri: Uri, headers: HeaderMap| {
            let host = headers.get(header::HOST).map_or("", |host| host.to_str().unwrap());
            let host = host.split(':').next().unwrap();
            notes.lock().unwrap().push(format!("{host}{}", uri.path()));
            let found = page(host, uri.path());
            async move {
                match found {
                    Some((kind, body)) => ([(header::CONTENT_TYPE, kind)], body).into_response(),
                    None => StatusCode::NOT_FOUND.into_response(),
                }
            }
        });
        match tls.map(acceptor) {
            None => drop(tokio::spawn(axum::serve(tcp, router).into_future())),
            Some(tls) => {
                drop(tokio::spawn(axum::serve(Secure { tcp, tls }, router).into_future()));
            }
        }
        Self { address, seen }
    }

    /// Host and path of each request so far.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn acceptor(Authority { server: (certificate, key), .. }: &Authority) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config).into()
}

struct Secure {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl Listener for Secure {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, from) = Listener::accept(&mut self.tcp).await;
            // A client that does not trust this server disconnects.
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
