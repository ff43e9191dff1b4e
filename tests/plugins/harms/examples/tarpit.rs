//! Asks a host that never answers, again and again. Needs `http` with the host of its config.

use harms::*;

struct Tarpit;
harms::guest!(Tarpit);

impl Harm for Tarpit {
    const NAME: &str = "tarpit";

    fn describe() -> Manifest {
        Manifest { hosts: vec!["tarpit.example:443".into()], ..manifest(Self::NAME) }
    }

    fn harm(_: &Message) -> Result<Verdict, String> {
        loop {
            let _ = http::send(&http::Request {
                method: "GET".into(),
                url: "https://tarpit.example/".into(),
                headers: vec![],
                body: None,
            });
        }
    }
}
