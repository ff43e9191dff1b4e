//! Raw bytes to and from the proxy, without a library that could correct them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::in_time;

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The JSON-RPC messages in the body, which is one message or a stream.
    pub fn messages(&self) -> Vec<Value> {
        if self.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return super::agent::events(&self.body);
        }
        if self.body.is_empty() {
            return Vec::new();
        }
        vec![serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:#?}"))]
    }

    /// The stable code of a refusal.
    pub fn refusal(&self) -> String {
        let messages = self.messages();
        let code = messages.iter().find_map(|message| {
            let code = message["error"]["data"]["code"].as_str().map(str::to_owned);
            code.or_else(|| super::agent::input_error(&message["result"]))
        });
        code.unwrap_or_else(|| panic!("no refusal: {self:#?}"))
    }
}

/// Sends exactly these bytes and reads until the proxy closes.
pub async fn raw(addr: SocketAddr, bytes: &[u8]) -> Reply {
    raw_from(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr, bytes).await
}

/// As [`raw`], from this address.
pub async fn raw_from(from: IpAddr, addr: SocketAddr, bytes: &[u8]) -> Reply {
    let exchange = async {
        let mut stream = connect_from(from, addr).await.unwrap();
        // The proxy may close before it has read all of a refused request.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    parse(&in_time("an answer", exchange).await)
}

/// Connects from an address of this machine.
///
/// # Errors
/// An error if the proxy or the system refuses the connection.
pub async fn connect_from(from: IpAddr, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(addr).await
}

/// A `POST` with these headers (and `Host`, unless there is one among them) and this body.
pub async fn post(addr: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut head = format!("POST {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {addr}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    raw(addr, &[head.as_bytes(), body].concat()).await
}

/// Headers of an ordinary message.
pub const ORDINARY: &[(&str, &str)] =
    &[("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream")];

/// Parses a response that ends with the connection.
pub fn parse(answer: &[u8]) -> Reply {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Reply { status, headers, body }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}
