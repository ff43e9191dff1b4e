use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::Method as Verb,
    response::Response,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::{Deadline, InstanceKey, UnroutedMessage};
use portcullis_protocol::names::SessionId;

const CAPS: Caps =
    Caps { bytes: 1 << 16, depth: 64, nodes: 10_000, keys: 10_000, object_keys: 10_000 };

/// A received request, to be answered by the test.
struct Got {
    verb: Verb,
    path: String,
    headers: HeaderMap,
    body: Value,
    reply: oneshot::Sender<Response>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn status(self, status: u16) {
        let _ = self.reply.send(Response::builder().status(status).body(Body::empty()).unwrap());
    }

    fn result(self, headers: &[(&str, &str)]) {
        let text = json!({ "jsonrpc": "2.0", "id": self.body["id"], "result": {} }).to_string();
        let mut response = Response::builder().header("content-type", JSON);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let _ = self.reply.send(response.body(Body::from(text)).unwrap());
    }

    /// Answers with a stream, which ends when its sender is dropped.
    fn stream(self) -> mpsc::UnboundedSender<String> {
        let (sender, events) = mpsc::unbounded_channel::<String>();
        let events =
            futures_util::StreamExt::map(UnboundedReceiverStream::new(events), Ok::<_, Infallible>);
        let response =
            Response::builder().header("content-type", EVENTS).body(Body::from_stream(events));
        let _ = self.reply.send(response.unwrap());
        sender
    }
}

/// A server that the test controls.
struct Remote {
    url: String,
    requests: mpsc::UnboundedReceiver<Got>,
}

impl Remote {
    async fn start() -> Self {
        // As the command line does.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (sender, requests) = mpsc::unbounded_channel();
        let app = Router::new().fallback(take).with_state(sender);
        let listener =
            tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, requests }
    }

    async fn next(&mut self) -> Got {
        soon(self.requests.recv()).await.unwrap()
    }

    fn line(&self, party: Option<InstanceKey>) -> (Arc<Http>, mpsc::Receiver<UnroutedMessage>) {
        let (sink, unrouted) = MessageSink::test(party);
        (Arc::new(Http::new(&self.url, &[], CAPS, sink).unwrap()), unrouted)
    }

    /// A transport with a session of the latest legacy revision, without a standalone stream.
    async fn session(&mut self) -> (Arc<Http>, mpsc::Receiver<UnroutedMessage>) {
        let (line, unrouted) = self.line(None);
        let handshake = start(&line, call(Method::INITIALIZE));
        self.next().await.result(&[("mcp-session-id", "s1")]);
        assert!(matches!(soon(handshake).await.unwrap(), Ok(Reply::Result(_))));
        line.agreed(Revision::LATEST_LEGACY);
        (line, unrouted)
    }
}

async fn take(State(requests): State<mpsc::UnboundedSender<Got>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 16).await.unwrap();
    let (reply, response) = oneshot::channel();
    let got = Got {
        verb: parts.method,
        path: parts.uri.to_string(),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        reply,
    };
    let _ = requests.send(got);
    response.await.unwrap_or_default()
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("in time")
}

fn call(method: &str) -> Call {
    Call::own(method, Some(Bytes::from_static(b"{}")), Duration::from_secs(30))
}

fn start(
    line: &Arc<impl ServerTransport + 'static>,
    call: Call,
) -> tokio::task::JoinHandle<Result<Reply, CallError>> {
    let line = line.clone();
    tokio::spawn(async move { line.call(call).await })
}

fn event(id: &str, message: Value) -> String {
    format!("id: {id}\ndata: {message}\n\n")
}

fn answer(id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": { "x": 1 } })
}

#[tokio::test]
async fn interrupted_stream_resumes_after_its_last_event() {
    let mut remote = Remote::start().await;
    let (line, _unrouted) = remote.session().await;
    let calling = start(&line, call("tools/call"));
    let got = remote.next().await;
    let id = got.body["id"].clone();
    got.stream().send("id: 7/a\nretry: 1\ndata:\n\n".into()).unwrap();
    // Twice, with a response that is not a stream in between.
    let got = remote.next().await;
    assert_eq!((got.verb.as_str(), got.header("last-event-id")), ("GET", "7/a"));
    assert_eq!((got.header("mcp-session-id"), got.header("accept")), ("s1", EVENTS));
    got.status(503);
    let stream = remote.next().await.stream();
    stream.send(event("8", json!({ "jsonrpc": "2.0", "method": "notifications/x" }))).unwrap();
    drop(stream);
    let got = remote.next().await;
    assert_eq!(got.header("last-event-id"), "8");
    got.stream().send(event("9", answer(&id))).unwrap();
    let reply = soon(calling).await.unwrap();
    assert!(matches!(reply, Ok(Reply::Result(result)) if result == r#"{"x":1}"#));
}

#[tokio::test]
async fn stream_without_resumption_fails_the_call() {
    let mut remote = Remote::start().await;
    let (line, _unrouted) = remote.session().await;
    // A stream without event ids cannot be resumed.
    let calling = start(&line, call("tools/call"));
    remote.next().await.stream().send("data: \n\n".into()).unwrap();
    assert!(matches!(soon(calling).await.unwrap(), Err(CallError::Unavailable(_))));
    // The server does not support resumption.
    let calling = start(&line, call("tools/call"));
    remote.next().await.stream().send("id: 1\nretry: 1\ndata:\n\n".into()).unwrap();
    remote.next().await.status(405);
    assert!(matches!(soon(calling).await.unwrap(), Err(CallError::Unavailable(_))));
    // The server answers forever with empty streams: the deadline ends that.
    let mut limited = call("tools/call");
    limited.clock = Deadline::new(Duration::from_millis(300));
    let calling = start(&line, limited);
    remote.next().await.stream().send("id: 1\nretry: 1\ndata:\n\n".into()).unwrap();
    let reply = loop {
        tokio::select! {
            got = remote.next() => match got.verb {
                Verb::GET => drop(got.stream()),
                _ => got.status(202),
            },
            () = async { while !calling.is_finished() { tokio::task::yield_now().await } } => break calling.await,
        }
    };
    assert!(matches!(reply.unwrap(), Err(CallError::Timeout(_))));
    assert!(line.dead().is_none());
}

#[tokio::test]
async fn unknown_session_ends_the_connection() {
    let mut remote = Remote::start().await;
    let (line, _unrouted) = remote.session().await;
    let calling = start(&line, call("tools/call"));
    let got = remote.next().await;
    assert_eq!(got.header("mcp-protocol-version"), "2025-11-25");
    got.status(404);
    assert_eq!(soon(calling).await.unwrap().unwrap_err(), CallError::Forgotten);
    assert_eq!(line.dead().unwrap(), "it ended the session");

    // So does the standalone stream that was open once.
    let (line, _unrouted) = remote.session().await;
    line.listen();
    drop(remote.next().await.stream());
    remote.next().await.status(404);
    soon(async {
        while line.dead().is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn standalone_stream_is_read_and_reopened() {
    let mut remote = Remote::start().await;
    let (line, mut unrouted) = remote.session().await;
    line.listen();
    let got = remote.next().await;
    assert_eq!((got.verb.as_str(), got.header("mcp-session-id")), ("GET", "s1"));
    let stream = got.stream();
    let ask = json!({ "jsonrpc": "2.0", "id": "q", "method": "roots/list" });
    stream.send(format!("retry: 1\n{}", event("1", ask))).unwrap();
    let UnroutedMessage { party: None, message: ServerMessage::Request { answer: reply, .. } } =
        soon(unrouted.recv()).await.unwrap()
    else {
        panic!("no request")
    };
    reply.send(Bytes::from_static(br#"{"jsonrpc":"2.0","id":"q","result":{"roots":[]}}"#)).unwrap();
    let got = remote.next().await;
    assert_eq!((got.verb.as_str(), &got.body["id"]), ("POST", &json!("q")));
    got.status(202);

    // Progress names its call; so does its token, on any stream.
    let (message, mut messages) = mpsc::channel(4);
    let mut asking = call("tools/call");
    asking.params = Some(Bytes::from_static(br#"{"_meta":{"progressToken":"mine"}}"#));
    asking.messages = Some(message);
    let calling = start(&line, asking);
    let got = remote.next().await;
    let ours = got.body["params"]["_meta"]["progressToken"].clone();
    assert_eq!(ours, got.body["id"]);
    let progress = json!({ "progressToken": ours, "progress": 1 });
    let progress = json!({ "jsonrpc": "2.0", "method": Method::PROGRESS, "params": progress });
    stream.send(event("2", progress)).unwrap();
    let Some(ServerMessage::Notification { params: Some(params), .. }) =
        soon(messages.recv()).await
    else {
        panic!("no progress")
    };
    assert_eq!(params, r#"{"progressToken":"mine","progress":1}"#);
    got.result(&[]);
    soon(calling).await.unwrap().unwrap();

    drop(stream);
    let got = remote.next().await;
    assert_eq!((got.verb.as_str(), got.header("last-event-id")), ("GET", "2"));
    let stream = got.stream();
    let changed = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
    stream.send(event("3", changed)).unwrap();
    let messages = soon(unrouted.recv()).await.unwrap().message;
    assert_eq!(messages.method().as_str(), "notifications/tools/list_changed");

    // At the end, the session is deleted.
    let leaving = tokio::spawn(async move { line.leave().await });
    let got = remote.next().await;
    assert_eq!((got.verb.as_str(), got.header("mcp-session-id")), ("DELETE", "s1"));
    got.status(204);
    soon(leaving).await.unwrap();
}

#[tokio::test]
async fn missing_standalone_stream_is_not_requested_again() {
    let mut remote = Remote::start().await;
    let (line, _unrouted) = remote.session().await;
    // Some servers do not route the request, which does not affect the session.
    for status in [405, 404] {
        line.listen();
        remote.next().await.status(status);
        let calling = start(&line, call("tools/call"));
        let got = remote.next().await;
        assert_eq!((got.verb.as_str(), got.header("mcp-session-id")), ("POST", "s1"));
        got.result(&[]);
        soon(calling).await.unwrap().unwrap();
    }
    // The proxy never sends it to a modern server.
    let (line, _unrouted) = remote.line(None);
    line.agreed(Revision::LATEST_MODERN);
    line.listen();
    let calling = start(&line, call("tools/call"));
    assert_eq!(remote.next().await.verb, Verb::POST);
    calling.abort();
}

#[tokio::test]
async fn standalone_stream_without_resumption_is_opened_again() {
    let mut remote = Remote::start().await;
    let (line, mut unrouted) = remote.session().await;
    line.listen();
    let stream = remote.next().await.stream();
    stream.send("id: 1\nretry: 0\ndata:\n\n".into()).unwrap();
    drop(stream);
    for (status, last) in [(409, "1"), (400, "1")] {
        let got = remote.next().await;
        assert_eq!(got.header("last-event-id"), last);
        got.status(status);
    }
    let got = remote.next().await;
    assert_eq!((got.verb.as_str(), got.header("last-event-id")), ("GET", ""));
    let changed = json!({ "jsonrpc": "2.0", "method": Method::TOOLS_CHANGED });
    got.stream().send(event("1", changed)).unwrap();
    assert_eq!(
        soon(unrouted.recv()).await.unwrap().message.method().as_str(),
        Method::TOOLS_CHANGED
    );
    assert!(line.dead().is_none());
}

#[tokio::test]
async fn failed_handshake_opens_no_session() {
    let mut remote = Remote::start().await;
    let (line, _unrouted) = remote.line(None);
    let handshake = start(&line, call(Method::INITIALIZE));
    let refused = Response::builder().status(404).header("mcp-session-id", "s1");
    let _ = remote.next().await.reply.send(refused.body(Body::empty()).unwrap());
    assert!(matches!(soon(handshake).await.unwrap(), Err(CallError::Unavailable(_))));
    assert!(line.older_transport_suspected() && line.dead().is_none());
}

#[tokio::test]
async fn server_requests_on_a_calls_stream_belong_to_it() {
    let mut remote = Remote::start().await;
    let (line, mut unrouted) = remote.session().await;
    let (message, mut messages) = mpsc::channel(4);
    let mut asking = call("tools/call");
    asking.messages = Some(message);
    let calling = start(&line, asking);
    let got = remote.next().await;
    let id = got.body["id"].clone();
    let stream = got.stream();
    let ask = |id: u64| json!({ "jsonrpc": "2.0", "id": id, "method": "elicitation/create" });
    let notification = |method: &str, params: Value| json!({ "jsonrpc": "2.0", "method": method, "params": params });
    stream.send(event("1", ask(1))).unwrap();
    stream.send(event("2", ask(2))).unwrap();
    let mut replies = Vec::new();
    for _ in 0..2 {
        let Some(ServerMessage::Request { answer, .. }) = soon(messages.recv()).await else {
            panic!("no request")
        };
        replies.push(answer);
    }
    // The server cancels one request, sends a message to the call, and one without a call.
    stream.send(event("3", notification(Method::CANCELLED, json!({ "requestId": 1 })))).unwrap();
    soon(replies[0].closed()).await;
    stream.send(event("4", notification(Method::LOG_MESSAGE, json!({ "data": 1.0 })))).unwrap();
    let Some(ServerMessage::Notification { params: Some(params), .. }) =
        soon(messages.recv()).await
    else {
        panic!("no notification")
    };
    assert_eq!(params, r#"{"data":1.0}"#);
    stream.send(event("5", notification(Method::UPDATED, json!({ "uri": "u" })))).unwrap();
    let all = soon(unrouted.recv()).await.unwrap().message;
    assert_eq!(all.method().as_str(), Method::UPDATED);
    // The stream continues while the other server request is open and unanswered.
    stream.send(event("6", answer(&id))).unwrap();
    soon(calling).await.unwrap().unwrap();
    drop(replies);
    let got = remote.next().await;
    assert_eq!((&got.body["id"], &got.body["error"]["code"]), (&json!(2), &json!(-32603)));
    got.status(202);
}

#[tokio::test]
async fn abandoned_call_is_cancelled_as_its_era_requires() {
    let mut remote = Remote::start().await;
    let (line, _unrouted) = remote.session().await;
    let calling = start(&line, call("tools/call"));
    let got = remote.next().await;
    calling.abort();
    let cancel = remote.next().await;
    assert_eq!(cancel.body["method"], Method::CANCELLED);
    assert_eq!(cancel.body["params"]["requestId"], got.body["id"]);
    cancel.status(202);

    let (line, _unrouted) = remote.line(None);
    line.agreed(Revision::LATEST_MODERN);
    let calling = start(&line, call("tools/call"));
    let stream = remote.next().await.stream();
    calling.abort();
    soon(stream.closed()).await;
    assert!(remote.requests.try_recv().is_err());
}

#[tokio::test]
async fn batches_are_accepted_only_in_their_revision() {
    let mut remote = Remote::start().await;
    for (revision, taken) in [(Revision::V2025_03_26, true), (Revision::V2025_06_18, false)] {
        let (line, _unrouted) = remote.line(None);
        line.agreed(revision);
        let calling = start(&line, call("tools/call"));
        let got = remote.next().await;
        let messages = json!({ "jsonrpc": "2.0", "method": Method::LOG_MESSAGE, "params": {} });
        let batch = json!([messages, answer(&got.body["id"])]);
        got.stream().send(event("1", batch)).unwrap();
        assert_eq!(soon(calling).await.unwrap().is_ok(), taken, "{revision}");
    }
}

#[tokio::test]
async fn http_sse_transport_has_one_stream_and_an_endpoint() {
    let mut remote = Remote::start().await;
    let key = InstanceKey::Session(SessionId::presented("party"));
    let (sink, mut unrouted) = MessageSink::test(Some(key.clone()));
    let url = remote.url.clone();
    let opening = tokio::spawn(async move { Sse::open(&url, &[], CAPS, sink).await });
    let got = remote.next().await;
    assert_eq!((got.verb.as_str(), got.header("accept")), ("GET", EVENTS));
    let stream = got.stream();
    stream.send("event: endpoint\ndata: /told?session=1\n\n".into()).unwrap();
    let line = Arc::new(soon(opening).await.unwrap().unwrap());

    let (message, mut messages) = mpsc::channel(4);
    let mut asking = call("tools/call");
    asking.messages = Some(message);
    let calling = start(&line, asking);
    let got = remote.next().await;
    assert_eq!((got.verb.as_str(), got.path.as_str()), ("POST", "/told?session=1"));
    let id = got.body["id"].clone();
    got.status(202);
    // A server request on the only stream of a dedicated instance belongs to its newest call.
    let ask = json!({ "jsonrpc": "2.0", "id": 5, "method": "roots/list" });
    stream.send(format!("event: message\ndata: {ask}\n\n")).unwrap();
    let Some(ServerMessage::Request { answer: reply, .. }) = soon(messages.recv()).await else {
        panic!("no request")
    };
    reply.send(Bytes::from_static(br#"{"jsonrpc":"2.0","id":5,"result":{}}"#)).unwrap();
    let got = remote.next().await;
    assert_eq!(got.body["id"], 5);
    got.status(202);
    stream.send(format!("event: message\ndata: {}\n\n", answer(&id))).unwrap();
    soon(calling).await.unwrap().unwrap();
    // The endpoint's time is the call's: some servers answer after the work is done.
    let mut limited = call("tools/call");
    limited.clock = Deadline::new(PATIENCE + Duration::from_secs(1));
    let calling = start(&line, limited);
    let working = loop {
        let got = remote.next().await;
        if got.body["method"] == "tools/call" {
            break got;
        }
    };
    let messages = soon(calling).await.unwrap();
    assert!(matches!(messages, Err(CallError::Timeout(limit)) if limit > PATIENCE));
    drop(working);
    // Without a call, the message belongs to the owner of the instance.
    stream.send(format!("data: {ask}\n\n")).unwrap();
    assert_eq!(soon(unrouted.recv()).await.unwrap().party, Some(key));

    // A rejected message has no response; the end of the stream ends the connection.
    let calling = start(&line, call("tools/call"));
    let got = loop {
        let got = remote.next().await;
        if got.body["method"] == "tools/call" {
            break got;
        }
    };
    got.status(500);
    assert!(matches!(soon(calling).await.unwrap(), Err(CallError::Unavailable(_))));
    let calling = start(&line, call("tools/call"));
    drop(stream);
    assert!(matches!(soon(calling).await.unwrap(), Err(CallError::Unavailable(_))));
    assert!(line.dead().is_some());
}

#[tokio::test]
async fn foreign_endpoint_is_refused() {
    let mut remote = Remote::start().await;
    for message in ["event: endpoint\ndata: http://other.example/m\n\n", "data: {}\n\n"] {
        let (sink, _unrouted) = MessageSink::test(None);
        let url = remote.url.clone();
        let opening = tokio::spawn(async move { Sse::open(&url, &[], CAPS, sink).await });
        remote.next().await.stream().send(message.into()).unwrap();
        assert!(soon(opening).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn bodies_are_limited_in_every_framing() {
    let mut remote = Remote::start().await;
    let (line, _unrouted) = remote.session().await;
    let text = |id: &Value, size: usize| {
        let text = json!({ "jsonrpc": "2.0", "id": id, "result": { "text": "" } }).to_string();
        text.replace("\"\"", &format!("\"{}\"", "x".repeat(size - text.len())))
    };
    // Announced by a length, or in chunks without one.
    for chunk in [None, Some(1000)] {
        for (size, passes) in
            [(100, true), (10_000, true), (CAPS.bytes, true), (CAPS.bytes + 1, false)]
        {
            let calling = start(&line, call("tools/call"));
            let got = remote.next().await;
            let text = text(&got.body["id"], size);
            let body = match chunk {
                None => Body::from(text),
                Some(chunk) => {
                    let chunks = text.into_bytes();
                    let chunks: Vec<_> = chunks.chunks(chunk).map(<[u8]>::to_vec).collect();
                    let chunks = chunks.into_iter().map(Ok::<_, Infallible>);
                    Body::from_stream(futures_util::stream::iter(chunks))
                }
            };
            let response = Response::builder().header("content-type", JSON).body(body);
            let _ = got.reply.send(response.unwrap());
            let reply = soon(calling).await.unwrap();
            match passes {
                true => assert!(matches!(reply, Ok(Reply::Result(_))), "{size}: {reply:?}"),
                false => assert!(
                    matches!(&reply, Err(CallError::Misbehaved(why)) if why.contains("more than")),
                    "{size}: {reply:?}"
                ),
            }
        }
    }
}
