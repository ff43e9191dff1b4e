//! Asks a host that never answers, again and again. Needs `http` with that host.

use harms::*;

/// The tests put the port of their own server here.
const HOST: &str = "localhost:54321";

struct Tarpit;
harms::guest!(Tarpit);

impl Harm for Tarpit {
    const NAME: &str = "tarpit";

    fn describe() -> Manifest {
        Manifest { hosts: vec![format!("http://{HOST}")], ..manifest(Self::NAME) }
    }

    fn harm(_: &Message) -> Result<Verdict, String> {
        loop {
            let _ = http::send(&http::Request {
                method: "GET".into(),
                url: format!("http://{HOST}/"),
                headers: vec![],
                body: None,
                timeout_ms: None,
            });
        }
    }
}
