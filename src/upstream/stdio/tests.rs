use tokio::io::{AsyncBufReadExt, BufReader, duplex};

use proptest::prelude::Strategy;

use super::*;
use crate::{InstanceKey, ServerMessage, UnroutedMessage};

const CAPS: Caps =
    Caps { bytes: 1 << 16, depth: 64, nodes: 10_000, keys: 10_000, object_keys: 10_000 };

struct Server {
    lines: tokio::io::Lines<BufReader<tokio::io::DuplexStream>>,
    stdout: tokio::io::DuplexStream,
}

impl Server {
    async fn read(&mut self) -> String {
        self.lines.next_line().await.unwrap().unwrap()
    }

    async fn write(&mut self, text: &str) {
        self.stdout.write_all(format!("{text}\n").as_bytes()).await.unwrap();
    }
}

fn pipe() -> (Arc<StdioTransport>, Server, mpsc::Receiver<UnroutedMessage>) {
    line(None)
}

fn line(
    party: Option<InstanceKey>,
) -> (Arc<StdioTransport>, Server, mpsc::Receiver<UnroutedMessage>) {
    let (stdin, server_in) = duplex(1 << 16);
    let (stdout, server_out) = duplex(1 << 20);
    let (sink, unrouted) = MessageSink::test(party);
    let pipe = StdioTransport::new(stdin, stdout, CAPS, sink);
    let server = Server { lines: BufReader::new(server_in).lines(), stdout: server_out };
    (Arc::new(pipe), server, unrouted)
}

fn call(deadline: Duration) -> Call {
    Call::own("tools/call", Some(Bytes::from_static(b"{\n \"name\": \"t\"}")), deadline)
}

#[tokio::test]
async fn responses_match_their_requests_in_any_order() {
    let (pipe, mut server, _unrouted) = pipe();
    let first = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call(Duration::from_secs(9))).await }
    });
    let text = server.read().await;
    assert!(text.contains("\"id\":1") && text.contains("{  \"name\""), "{text}");
    let second = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call(Duration::from_secs(9))).await }
    });
    server.read().await;
    server.write("not json").await;
    server.write(r#"{"jsonrpc":"2.0","id":2,"result":{"n":2}}"#).await;
    server.write(r#"{"jsonrpc":"2.0","id":77,"result":{}}"#).await;
    server.write(r#"{"jsonrpc":"2.0","id":1,"error":{"n":1}}"#).await;
    assert!(matches!(first.await.unwrap(), Ok(Reply::Error(e)) if e == r#"{"n":1}"#));
    assert!(matches!(second.await.unwrap(), Ok(Reply::Result(r)) if r == r#"{"n":2}"#));
}

#[tokio::test]
async fn abandoned_call_is_cancelled() {
    let (pipe, mut server, _unrouted) = pipe();
    let failed = pipe.call(call(Duration::from_millis(20))).await.unwrap_err();
    assert_eq!(failed, CallError::Timeout(Duration::from_millis(20)));
    server.read().await;
    let cancelled = server.read().await;
    assert!(cancelled.contains("notifications/cancelled") && cancelled.contains("\"requestId\":1"));
    assert!(pipe.multiplexer.is_empty());
}

#[tokio::test]
async fn death_of_the_server_fails_all_calls() {
    let (pipe, mut server, _unrouted) = pipe();
    let waiting = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call(Duration::from_secs(9))).await }
    });
    server.read().await;
    drop(server);
    assert!(matches!(waiting.await.unwrap(), Err(CallError::Unavailable(_))));
    assert!(pipe.dead().is_some());
    assert!(matches!(
        pipe.call(call(Duration::from_secs(9))).await,
        Err(CallError::Unavailable(_))
    ));
}

#[tokio::test]
async fn oversized_line_ends_the_connection() {
    let (pipe, mut server, _unrouted) = pipe();
    let waiting = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call(Duration::from_secs(9))).await }
    });
    server.read().await;
    server.write(&"x".repeat((1 << 16) + 2)).await;
    let Err(CallError::Unavailable(why)) = waiting.await.unwrap() else { panic!("no failure") };
    assert!(why.contains("65536"), "{why}");
}

#[tokio::test]
async fn pings_and_server_requests_are_answered() {
    let (_pipe, mut server, mut unrouted) = pipe();
    server.write(r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#).await;
    assert_eq!(server.read().await, r#"{"jsonrpc":"2.0","id":"p","result":{}}"#);
    server.write(r#"{"jsonrpc":"2.0","id":5,"method":"roots/list"}"#).await;
    let Some(UnroutedMessage { message: ServerMessage::Request { answer, .. }, .. }) =
        unrouted.recv().await
    else {
        panic!("no request")
    };
    drop(answer);
    assert!(server.read().await.contains("accepts no requests"));
}

fn notification(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#)
}

fn hearing(params: &'static str) -> (Call, mpsc::Receiver<ServerMessage>) {
    let (message, messages) = mpsc::channel(8);
    let params = Some(Bytes::from_static(params.as_bytes()));
    let mut call = Call::own("tools/call", params, Duration::from_secs(30));
    call.messages = Some(message);
    (call, messages)
}

async fn method(messages: &mut mpsc::Receiver<ServerMessage>) -> String {
    messages.recv().await.unwrap().method().to_string()
}

#[tokio::test]
async fn unassigned_messages_go_to_the_newest_dedicated_call() {
    let key = InstanceKey::Session(portcullis_protocol::names::SessionId::presented("x"));
    for party in [None, Some(key)] {
        let (pipe, mut server, mut unrouted) = line(party.clone());
        let calls = [hearing("{}"), hearing("{}")];
        let mut receivers = Vec::new();
        for (call, messages) in calls {
            let pipe = pipe.clone();
            tokio::spawn(async move { pipe.call(call).await });
            server.read().await;
            receivers.push(messages);
        }
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{}}"#.to_owned(),
            notification("notifications/message", "{}"),
            notification("notifications/tools/list_changed", "{}"),
            notification("notifications/resources/updated", r#"{"uri":"u"}"#),
        ] {
            server.write(&text).await;
        }
        let mut all = Vec::new();
        if party.is_some() {
            assert_eq!(method(&mut receivers[1]).await, "sampling/createMessage");
            assert_eq!(method(&mut receivers[1]).await, "notifications/message");
        } else {
            for _ in 0..2 {
                all.push(unrouted.recv().await.unwrap());
            }
        }
        for _ in 0..2 {
            all.push(unrouted.recv().await.unwrap());
        }
        assert!(all.iter().all(|unrouted| unrouted.party == party));
        assert_eq!(
            all.last().unwrap().message.method().as_str(),
            "notifications/resources/updated"
        );
        assert!(receivers.iter_mut().all(|messages| messages.try_recv().is_err()));
    }
}

#[tokio::test]
async fn log_message_goes_to_the_only_call_that_requested_it() {
    let (pipe, mut server, mut unrouted) = pipe();
    let asks = r#"{"_meta":{"io.modelcontextprotocol/logLevel":"info"}}"#;
    let (call, mut messages) = hearing(asks);
    let first = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call).await }
    });
    server.read().await;
    let log = notification("notifications/message", "{}");
    server.write(&log).await;
    assert_eq!(method(&mut messages).await, "notifications/message");
    let (other, _messages) = hearing("{}");
    tokio::spawn(async move { pipe.call(other).await });
    server.read().await;
    server.write(&log).await;
    assert_eq!(unrouted.recv().await.unwrap().message.method().as_str(), "notifications/message");
    server.write(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).await;
    assert!(first.await.unwrap().is_ok());
    // The other call did not ask for log messages.
    server.write(&log).await;
    assert_eq!(unrouted.recv().await.unwrap().message.method().as_str(), "notifications/message");
}

#[tokio::test]
async fn log_of_an_abandoned_call_reaches_no_other() {
    let (pipe, mut server, mut unrouted) = pipe();
    let asks = r#"{"_meta":{"io.modelcontextprotocol/logLevel":"info"}}"#;
    let start = |call| {
        let pipe = pipe.clone();
        tokio::spawn(async move { pipe.call(call).await })
    };
    let (call, _messages) = hearing(asks);
    let first = start(call);
    server.read().await;
    first.abort();
    assert!(server.read().await.contains("notifications/cancelled"));
    let (call, mut messages) = hearing(asks);
    let _second = start(call);
    server.read().await;
    let log = notification("notifications/message", "{}");
    server.write(&log).await;
    assert_eq!(unrouted.recv().await.unwrap().message.method().as_str(), "notifications/message");
    assert!(messages.try_recv().is_err());
    // After its late response, the server cannot log for the cancelled call.
    server.write(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).await;
    server.write(&log).await;
    assert_eq!(method(&mut messages).await, "notifications/message");
}

#[tokio::test]
async fn progress_of_a_task_continues_after_its_call() {
    let (pipe, mut server, mut unrouted) = pipe();
    for (result, goes_on) in [(r#"{"task":{"taskId":"t"}}"#, true), (r#"{"task":1}"#, false)] {
        let (call, _messages) = hearing(r#"{"_meta":{"progressToken":"mine"}}"#);
        let calling = tokio::spawn({
            let pipe = pipe.clone();
            async move { pipe.call(call).await }
        });
        let text: serde_json::Value = serde_json::from_str(&server.read().await).unwrap();
        let id = &text["id"];
        server.write(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)).await;
        calling.await.unwrap().unwrap();
        let progress = format!(r#"{{"progressToken":{id},"progress":1.0}}"#);
        server.write(&notification("notifications/progress", &progress)).await;
        server.write(&notification("notifications/x", "{}")).await;
        let Some(UnroutedMessage {
            message: ServerMessage::Notification { method, params }, ..
        }) = unrouted.recv().await
        else {
            panic!("no notification")
        };
        assert_eq!(method.as_str() == "notifications/progress", goes_on);
        if goes_on {
            assert_eq!(params.unwrap(), r#"{"progressToken":"mine","progress":1.0}"#);
            unrouted.recv().await.unwrap();
        }
    }
}

#[tokio::test]
async fn batches_are_accepted_only_in_their_revision() {
    for (revision, taken) in [
        (Revision::V2024_11_05, false),
        (Revision::V2025_03_26, true),
        (Revision::V2025_06_18, false),
    ] {
        let (pipe, mut server, mut unrouted) = pipe();
        pipe.agreed(revision);
        let calling = tokio::spawn({
            let pipe = pipe.clone();
            async move { pipe.call(call(Duration::from_secs(30))).await }
        });
        server.read().await;
        server.write("[]").await;
        server
            .write(
                r#"[{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","id":1,"result":{"a":1.0}}]"#,
            )
            .await;
        match calling.await.unwrap() {
            Ok(Reply::Result(result)) if taken => assert_eq!(result, r#"{"a":1.0}"#),
            Err(CallError::Misbehaved(_)) if !taken => assert!(unrouted.try_recv().is_err()),
            other => panic!("{revision}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn server_can_cancel_its_request() {
    let (_pipe, mut server, mut unrouted) = pipe();
    server.write(r#"{"jsonrpc":"2.0","id":"q","method":"roots/list"}"#).await;
    let Some(UnroutedMessage { message: ServerMessage::Request { mut answer, .. }, .. }) =
        unrouted.recv().await
    else {
        panic!("no request")
    };
    server.write(&notification("notifications/cancelled", r#"{"requestId":"q"}"#)).await;
    answer.closed().await;
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_cause_no_panic(
        texts in proptest::collection::vec(proptest::prop_oneof![
            proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
            r#"\[?\{"jsonrpc":"2.0",("id":[0-2],)?("method":"(ping|notifications/(progress|cancelled|message)|a)",)?"(params|result|error)":(\{\}|\{"_meta":\{"io.modelcontextprotocol/subscriptionId":1\}\}|\{"progressToken":1,"requestId":1\}|1)\}\]?"#
                .prop_map(String::into_bytes),
        ], 0..12),
        batches: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (pipe, mut server, unrouted) = pipe();
            drop(unrouted);
            if batches {
                pipe.agreed(Revision::V2025_03_26);
            }
            let calling = tokio::spawn({
                let pipe = pipe.clone();
                async move { pipe.call(hearing(r#"{"_meta":{"progressToken":1}}"#).0).await }
            });
            server.read().await;
            for text in texts {
                let _ = server.stdout.write_all(&text).await;
                let _ = server.stdout.write_all(b"\n").await;
            }
            drop(server);
            let _ = calling.await.unwrap();
            assert!(pipe.dead().is_some());
        });
    }
}
