//! Debian's rsyslogd as the receiver of octet-counted messages, and a receiver over TLS.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Stdio, sync::Arc};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

use super::{arrives, by_seq, calls, exporting, stored};
use crate::support::{authority::Authority, in_time, kill_9, until};

/// A daemon of this test's own.
struct Daemon {
    folder: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Daemon {
    async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("rsyslog.").tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let here = folder.path().display();
        // Messages as they are, and what the daemon makes of the structured data.
        let config = format!(
            "global(workDirectory=\"{here}\" maxMessageSize=\"64k\")\n\
             module(load=\"imtcp\")\n\
             template(name=\"raw\" type=\"list\") {{\n\
               property(name=\"msgid\") constant(value=\" \")\n\
               property(name=\"app-name\") constant(value=\" \")\n\
               property(name=\"structured-data\") constant(value=\"\\t\")\n\
               property(name=\"msg\") constant(value=\"\\n\")\n\
             }}\n\
             input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\"\n\
               supportOctetCountedFraming=\"on\")\n\
             action(type=\"omfile\" file=\"{here}/messages\" template=\"raw\" \
               asyncWriting=\"off\" flushOnTXEnd=\"on\")\n"
        );
        fs::write(folder.path().join("rsyslog.conf"), config).unwrap();
        let mut daemon = Self { folder, port, process: None };
        daemon.restart().await;
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn restart(&mut self) {
        let mut command = Command::new("rsyslogd");
        // Debian keeps it where only root's PATH leads.
        command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()));
        command.arg("-n").arg("-f").arg(self.path("rsyslog.conf"));
        command.arg("-i").arg(self.path("pid"));
        command.stdin(Stdio::null()).kill_on_drop(true);
        self.process = Some(command.spawn().expect("rsyslogd: `tests/setup/packages` installs it"));
        let address = (std::net::Ipv4Addr::LOCALHOST, self.port);
        until("rsyslogd to listen", async || TcpStream::connect(address).await.ok()).await;
    }

    /// Ends it in order: it writes what it has taken.
    async fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(process.id().unwrap().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        in_time("rsyslogd's end", process.wait()).await.unwrap();
    }

    fn messages(&self) -> String {
        fs::read_to_string(self.path("messages")).unwrap_or_default()
    }

    /// The records among what it wrote.
    fn records(&self) -> BTreeMap<u64, String> {
        let messages = self.messages();
        let whole = messages.rfind('\n').map_or("", |end| &messages[..end]);
        by_seq(whole.lines().filter_map(|line| line.split_once('\t')).map(|(_, text)| text.trim()))
    }
}

#[tokio::test]
async fn rsyslogd_gets_every_record_across_restarts() {
    let mut daemon = Daemon::start().await;
    let gate = exporting(&format!(
        "[[audit.export]]\nname = \"syslog\"\nto = \"syslog+tcp://127.0.0.1:{}\"\nbatch = 5\n",
        daemon.port
    ))
    .start()
    .await;
    calls(&gate, 10).await;
    arrives(&gate, async || daemon.records()).await;
    let first = daemon.messages().lines().next().unwrap().to_owned();
    assert!(first.contains(" portcullis [portcullis@32473 log=\""), "{first}");
    daemon.stop().await;
    calls(&gate, 10).await;
    daemon.restart().await;
    calls(&gate, 10).await;
    arrives(&gate, async || daemon.records()).await;
    // Its death between two batches is seen before the second counts as delivered.
    let pid = daemon.process.as_ref().unwrap().id().unwrap();
    kill_9(pid.try_into().unwrap());
    in_time("rsyslogd's end", daemon.process.take().unwrap().wait()).await.unwrap();
    calls(&gate, 10).await;
    daemon.restart().await;
    arrives(&gate, async || daemon.records()).await;
    let written = gate.stop().await;
    daemon.stop().await;
    assert_eq!(daemon.records(), stored(&written).await);
}

/// Reads octet-counted messages until the connection ends.
async fn frames(mut stream: impl AsyncRead + Unpin, got: mpsc::UnboundedSender<String>) {
    let mut stream = BufReader::new(&mut stream);
    loop {
        let mut length = Vec::new();
        if stream.read_until(b' ', &mut length).await.unwrap_or(0) == 0 {
            return;
        }
        let length: usize = str::from_utf8(&length).unwrap().trim().parse().unwrap();
        let mut message = vec![0; length];
        if stream.read_exact(&mut message).await.is_err() {
            return;
        }
        let _ = got.send(String::from_utf8(message).unwrap());
    }
}

#[tokio::test]
async fn tls_certificate_of_the_receiver_is_verified() {
    let authority = Authority::new();
    let (certificate, key) = &authority.server;
    crate::support::gate::reqwest_client();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, mut got) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                if let Ok(tls) = acceptor.accept(tcp).await {
                    frames(tls, sender).await;
                }
            });
        }
    });
    let export = |host: &str| {
        format!(
            "[[audit.export]]\nname = \"tls\"\nto = \"syslog+tls://{host}:{port}\"\n\
             format = \"cef\"\nca-file = \"ca.pem\"\n"
        )
    };
    // Of another authority.
    let wrong = exporting(&export("127.0.0.1")).file("ca.pem", Authority::new().certificate);
    let mut gate = wrong.start().await;
    let told = gate.logged("a refusal", |line| line.contains("no TLS")).await;
    assert!(told.contains("invalid peer certificate"), "{told}");
    assert!(got.try_recv().is_err());
    let written = gate.stop().await;
    fs::write(written.path("ca.pem"), &authority.certificate).unwrap();
    let gate = written.start().await;
    calls(&gate, 3).await;
    let wanted = stored(&gate).await.len();
    for _ in 0..wanted {
        let message = in_time("a message", got.recv()).await.unwrap();
        assert!(message.contains("] CEF:0|Portcullis|Portcullis|"), "{message}");
    }
    gate.stop().await;
}
