//! Transports to a witness.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::{
        fs::OpenOptionsExt as _,
        net::{UnixDatagram, UnixStream},
    },
    path::Path,
    time::Duration,
};

use jiff::Timestamp;

use super::{Witness, resolve};

/// Timeout of one delivery.
const PATIENCE: Duration = Duration::from_secs(10);
/// Priority of RFC 5424: facility 13, "log audit", severity 6, "informational".
const PRIORITY: u8 = 13 * 8 + 6;

/// Sender for one witness.
pub(super) struct Sender {
    to: Witness,
    host: String,
    /// Created on first use, on the thread that uses it.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Sender {
    pub fn new(to: Witness) -> Self {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let host =
            host.filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()));
        Self { to, host: host.unwrap_or_else(|| "-".into()), runtime: None }
    }

    /// Sends a note. `Ok` means receipt, if the transport has acknowledgements.
    pub fn send(&mut self, note: &str) -> io::Result<()> {
        match &self.to {
            Witness::File(path) => append(path, note),
            Witness::SyslogUdp(address) => {
                let to = resolve(address)?;
                let from: SocketAddr = match to {
                    SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                    SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
                };
                UdpSocket::bind(from)?.send_to(self.message(note).as_bytes(), to).map(drop)
            }
            Witness::SyslogTcp(address) => {
                let mut stream = TcpStream::connect_timeout(&resolve(address)?, PATIENCE)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.write_all(counted(&self.message(note)).as_bytes())
            }
            Witness::SyslogUnix(path) => {
                let socket = UnixDatagram::unbound()?;
                match socket.connect(path) {
                    Ok(()) => {
                        socket.set_write_timeout(Some(PATIENCE))?;
                        socket.send(self.message(note).as_bytes()).map(drop)
                    }
                    // The socket is a stream socket.
                    Err(error)
                        if error.raw_os_error() == Some(nix::errno::Errno::EPROTOTYPE as i32) =>
                    {
                        let mut stream = UnixStream::connect(path)?;
                        stream.set_write_timeout(Some(PATIENCE))?;
                        stream.write_all(counted(&self.message(note)).as_bytes())
                    }
                    Err(error) => Err(error),
                }
            }
            Witness::Url(url) => {
                let runtime = match self.runtime.take() {
                    Some(runtime) => runtime,
                    None => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
                };
                let sent = runtime.block_on(post(url, note));
                self.runtime = Some(runtime);
                sent
            }
        }
    }

    /// RFC 5424 message: one line, in ASCII.
    fn message(&self, note: &str) -> String {
        let text = serde_json::json!({ "checkpoint": note }).to_string();
        let mut ascii = String::with_capacity(text.len() + 16);
        for c in text.chars() {
            if c.is_ascii() {
                ascii.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    ascii.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
        let (host, process) = (&self.host, std::process::id());
        let time = Timestamp::now();
        format!("<{PRIORITY}>1 {time:.6} {host} portcullis {process} checkpoint - {ascii}")
    }
}

/// Message on a stream, with the octet count of RFC 6587.
fn counted(message: &str) -> String {
    format!("{} {message}", message.len())
}

fn append(path: &Path, note: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file: File = options.append(true).create(true).mode(0o644).open(path)?;
    file.write_all(format!("{note}\n").as_bytes())?;
    file.sync_data()
}

async fn post(url: &str, note: &str) -> io::Result<()> {
    // An error of this client must not contain the URL, which can contain a secret.
    let failed = |error: reqwest::Error| io::Error::other(error.without_url());
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .map_err(failed)?;
    let request = client
        .post(url)
        .header(http::header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .body(note.to_owned());
    let answer = request.send().await.map_err(failed)?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("it answered {}", answer.status())))
    }
}
