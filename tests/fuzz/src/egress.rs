//! The proxy end of confined servers: nothing is asked for that is not listed, whatever a program
//! says, and each attempt is told of once.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use portcullis_egress::{
    Attempt, Destination, Destinations, Egress, End, Gate, Host, Limits, Outcome, Resolver, Verdict,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
};

const LISTED: [&str; 5] = [
    "tls.example:443",
    "http://web.example:80",
    "tcp://db.example:5432",
    "*.wild.example:8443",
    "tls.example:8443",
];
/// Far beyond what any of it takes.
const STUCK: Duration = Duration::from_secs(20);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
});

#[derive(Default)]
struct Witness {
    asked: Mutex<Vec<Attempt>>,
    reported: Mutex<Vec<Outcome>>,
}

#[async_trait]
impl Gate for Witness {
    async fn decide(&self, attempt: &Attempt) -> Verdict {
        self.asked.lock().expect("a lock").push(attempt.clone());
        Verdict::Allow
    }

    async fn changed(&self) {
        std::future::pending().await
    }

    fn still(&self, _: &Attempt) -> Verdict {
        Verdict::Allow
    }

    fn report(&self, outcome: Outcome) {
        self.reported.lock().expect("a lock").push(outcome);
    }
}

/// Knows a private address of everything, so that nothing is ever connected to.
struct Private;

#[async_trait]
impl Resolver for Private {
    async fn addresses(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        Ok(vec![Ipv4Addr::new(10, 0, 0, 1).into()])
    }
}

pub fn target(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(host) = text.parse::<Host>() {
            assert_eq!(host.to_string().parse(), Ok(host));
        }
        if let Ok(destination) = text.parse::<Destination>() {
            assert_eq!(destination.to_string().parse(), Ok(destination));
        }
    }
    let Some((way, said)) = bytes.split_first() else { return };
    let host = |name: &str, port| Some((name.parse().expect("a host"), port));
    let toward = match way % 4 {
        0 => host("tls.example", 443),
        1 => host("web.example", 80),
        2 => host("db.example", 5432),
        _ => None,
    };
    RUNTIME.block_on(async {
        let all = LISTED.map(|text| text.parse().expect("a destination"));
        let all = Destinations::new(all.into()).expect("a list");
        let witness = Arc::new(Witness::default());
        let gate: Arc<dyn Gate> = witness.clone();
        // Waiting is not what is looked at.
        let limits = Limits { handshake: Duration::from_millis(500), ..Limits::default() };
        let egress = Egress::new("fuzz", all.clone(), limits, gate, Arc::new(Private));
        let (theirs, ours) = tokio::io::duplex(4096);
        let program = async {
            let (mut read, mut write) = tokio::io::split(theirs);
            let say = async {
                let _ = write.write_all(said).await;
                let _ = write.shutdown().await;
            };
            let mut heard = Vec::new();
            let _ = tokio::join!(say, read.read_to_end(&mut heard));
        };
        let both = async { tokio::join!(egress.converse(ours, toward), program) };
        tokio::time::timeout(STUCK, both).await.expect("it ends");
        tokio::time::timeout(STUCK, egress.stop()).await.expect("it stops");
        let asked = witness.asked.lock().expect("a lock");
        for attempt in asked.iter() {
            assert!(all.find(&attempt.host, attempt.port).is_some(), "{attempt:?} is not listed");
        }
        let reported = witness.reported.lock().expect("a lock");
        for outcome in reported.iter() {
            assert_eq!((outcome.up, outcome.down, outcome.address), (0, 0, None), "{outcome:?}");
            assert!(
                matches!(outcome.end, End::Refused(_) | End::Stopped | End::Broken),
                "{outcome:?}"
            );
        }
        let numbers: Vec<_> =
            reported.iter().filter_map(|o| Some(o.attempt.as_ref()?.number)).collect();
        for attempt in asked.iter() {
            let count = numbers.iter().filter(|number| **number == attempt.number).count();
            assert_eq!(count, 1, "{attempt:?} is told of {count} times");
        }
    });
}
