//! A remote server of 2025-11-25 whose tools break HTTP and JSON-RPC, written on the socket.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// Tools, each with the code that its call is refused with. Those without one answer.
pub const TOOLS: [(&str, Option<&str>); 14] = [
    ("echo", None),
    ("stalls-before-the-status", Some("server-timeout")),
    ("trickles-headers", Some("server-timeout")),
    ("trickles-the-body", Some("server-timeout")),
    ("trickles-events", Some("server-timeout")),
    ("dies-before-the-status", Some("server-unavailable")),
    ("dies-in-the-headers", Some("server-unavailable")),
    ("dies-in-the-body", Some("server-unavailable")),
    ("dies-in-a-chunk", Some("server-unavailable")),
    ("dies-in-an-event", Some("server-unavailable")),
    ("sends-no-http", Some("server-unavailable")),
    ("answers-for-another", Some("server-misbehaved")),
    ("answers-twice", None),
    ("answers-for-another-first", Some("server-misbehaved")),
];

/// Starts the server. Returns its URL.
pub async fn serve() -> String {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream));
        }
    });
    format!("http://{address}/mcp")
}

/// Answers requests until one of them, or the other side, ends the connection.
async fn connection(stream: TcpStream) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (method, message) = request(&mut stream).await?;
        if method != "POST" {
            stream.write_all(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n").await.ok()?;
            continue;
        }
        let id = &message["id"];
        let result = match message["method"].as_str().unwrap_or_default() {
            "initialize" => json!({
                "protocolVersion": "2025-11-25",
                "capabilities": { "tools": {} },
                "serverInfo": { "name": "bad", "version": "1" },
            }),
            "tools/list" => {
                let tools = TOOLS
                    .map(|(name, _)| json!({ "name": name, "inputSchema": { "type": "object" } }));
                json!({ "tools": tools })
            }
            "tools/call" => {
                call(&mut stream, message["params"]["name"].as_str()?, id).await?;
                continue;
            }
            "server/discover" => {
                stream.write_all(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n").await.ok()?;
                continue;
            }
            _ => json!({}),
        };
        if id.is_null() {
            stream.write_all(b"HTTP/1.1 202 Yes\r\nContent-Length: 0\r\n\r\n").await.ok()?;
        } else {
            stream.write_all(whole(&response(id, result)).as_bytes()).await.ok()?;
        }
    }
}

/// The next request: its HTTP method and its message.
async fn request(stream: &mut BufReader<TcpStream>) -> Option<(String, Value)> {
    let (mut method, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        method.get_or_insert_with(|| line.split(' ').next().unwrap_or_default().to_uppercase());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((method?, serde_json::from_slice(&body).unwrap_or_default()))
}

fn response(id: &Value, result: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string()
}

fn whole(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";

/// Writes the response of a tool. `None` ends the connection.
async fn call(stream: &mut BufReader<TcpStream>, tool: &str, id: &Value) -> Option<()> {
    let text = |text: &str| json!({ "content": [{ "type": "text", "text": text }] });
    let own = response(id, text("own"));
    // No id that the proxy has in use.
    let other = response(&json!(u32::MAX), text("other"));
    let full = whole(&own);
    let half = full.len() - own.len() / 2;
    let (sent, then) = match tool {
        "echo" => (full.clone(), Then::Continue),
        "stalls-before-the-status" => (String::new(), Then::Trickle("")),
        "trickles-headers" => ("HTTP/1.1 200 OK\r\nX: ".to_owned(), Then::Trickle("x")),
        "trickles-the-body" => (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
                .to_owned(),
            Then::Trickle(" "),
        ),
        "trickles-events" => (EVENTS.to_owned(), Then::Trickle(": still here\n\n")),
        "dies-before-the-status" => (String::new(), Then::End),
        "dies-in-the-headers" => ("HTTP/1.1 200 OK\r\nContent-Ty".to_owned(), Then::End),
        "dies-in-the-body" => (full[..half].to_owned(), Then::End),
        "dies-in-a-chunk" => (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
             ff\r\n{\"jsonrpc\""
                .to_owned(),
            Then::End,
        ),
        "dies-in-an-event" => (format!("{EVENTS}data: {}", &own[..own.len() / 2]), Then::End),
        "sends-no-http" => ("220 mail.example ESMTP\r\n".to_owned(), Then::End),
        "answers-for-another" => (whole(&other), Then::Continue),
        "answers-twice" => (format!("{EVENTS}data: {own}\n\ndata: {own}\n\n"), Then::End),
        "answers-for-another-first" => {
            (format!("{EVENTS}data: {other}\n\ndata: {own}\n\n"), Then::End)
        }
        _ => return None,
    };
    stream.write_all(sent.as_bytes()).await.ok()?;
    match then {
        Then::Continue => Some(()),
        Then::End => None,
        Then::Trickle(part) => loop {
            stream.write_all(part.as_bytes()).await.ok()?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        },
    }
}

/// What follows the text of a response.
enum Then {
    Continue,
    End,
    /// This text, again and again.
    Trickle(&'static str),
}
