//! Whatever a program sends: no unlisted host is resolved, nothing is sent, every attempt is
//! reported once, and every connection ends.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use portcullis_egress::{Destinations, Egress, End, Limits, Resolver};
use proptest::{collection::vec, prelude::*, sample::Index};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    hellos::{hello, with_ech},
    support::{Recorder, SOON},
};

/// Resolves every name to a private address, so that nothing is ever connected.
struct Private;

#[async_trait]
impl Resolver for Private {
    async fn addresses(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec!["10.0.0.1".parse().unwrap()])
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let text = [
        "CONNECT tls.example:443 HTTP/1.1\r\nHost: tls.example:443\r\n\r\n",
        "CONNECT a.wild.example:8443 HTTP/1.1\r\n\r\n",
        "CONNECT web.example:80 HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: web.example\r\n\r\n",
        "GET http://web.example/a?b HTTP/1.1\r\nHost: web.example\r\nConnection: x, close\r\nx: y\r\n\r\n",
        "POST http://web.example/ HTTP/1.1\r\nHost: web.example\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\n\r\nGET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web.example\r\n\r\n",
        "\u{5}\u{1}\0\u{5}\u{1}\0\u{3}\u{b}tls.example\0\u{50}",
        "\u{5}\u{1}\u{2}\u{1}\u{1}u\u{1}p\u{5}\u{1}\0\u{1}\n\0\0\u{1}\0\u{50}",
        "\u{5}\u{1}\0\u{5}\u{1}\0\u{3}\u{b}web.example\0\u{50}GET / HTTP/1.1\r\nHost: web.example\r\n\r\n",
    ];
    let text = text.into_iter().map(|text| text.as_bytes().to_vec());
    text.chain([hello("tls.example"), hello("evil.example"), with_ech(&hello("tls.example"))])
        .collect()
}

async fn hold(way: u8, sent: &[u8]) {
    let all = [
        "tls.example:443",
        "http://web.example:80",
        "tcp://db.example:5432",
        "*.wild.example:8443",
    ];
    let all = Destinations::new(all.map(|text| text.parse().unwrap()).into()).unwrap();
    let toward = match way % 4 {
        0 => Some(("tls.example", 443)),
        1 => Some(("web.example", 80)),
        2 => Some(("db.example", 5432)),
        _ => None,
    };
    let toward = toward.map(|(name, port)| (name.parse().unwrap(), port));
    let (gate, mut reported) = Recorder::new();
    let limits = Limits { handshake: Duration::from_millis(500), ..Limits::default() };
    let egress = Egress::new("any", all.clone(), limits, gate.clone(), Arc::new(Private));
    let (theirs, ours) = tokio::io::duplex(512);
    let program = async {
        let (mut read, mut write) = tokio::io::split(theirs);
        let exchange = async {
            let _ = write.write_all(sent).await;
            let _ = write.shutdown().await;
        };
        let mut received = Vec::new();
        let _ = tokio::join!(exchange, read.read_to_end(&mut received));
    };
    let both = async { tokio::join!(egress.converse(ours, toward), program) };
    timeout(SOON, both).await.expect("it ends");
    timeout(SOON, egress.stop()).await.expect("it stops");
    let requested = gate.requested.lock().unwrap().clone();
    let mut numbers = Vec::new();
    while let Ok(outcome) = reported.try_recv() {
        assert_eq!((outcome.up, outcome.down, outcome.address), (0, 0, None), "{outcome:?}");
        assert!(matches!(outcome.end, End::Refused(_) | End::Stopped | End::Broken), "{outcome:?}");
        numbers.extend(outcome.attempt.map(|attempt| attempt.number));
    }
    for attempt in requested {
        assert!(all.find(&attempt.host, attempt.port).is_some(), "{attempt:?}");
        assert_eq!(numbers.iter().filter(|number| **number == attempt.number).count(), 1);
    }
    numbers.sort_unstable();
    numbers.dedup_by(|one, other| panic!("{one} and {other} are reported twice"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn nothing_leaves_whatever_is_sent(
        way in any::<u8>(),
        seed in any::<Index>(),
        edits in vec((any::<Index>(), 0usize..4, vec(any::<u8>(), 0..6)), 0..5),
        end in any::<Index>(),
    ) {
        let mut sent = seed.get(&seeds()).clone();
        for (at, gone, new) in edits {
            let at = at.index(sent.len() + 1);
            let until = (at + gone).min(sent.len());
            sent.splice(at..until, new);
        }
        // Half of them are complete.
        let end = end.index(2 * sent.len() + 1).min(sent.len());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(hold(way, &sent[..end]));
    }
}
