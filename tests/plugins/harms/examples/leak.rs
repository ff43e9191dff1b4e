//! Puts a secret wherever words can be put. Needs `secrets`, `log` and `metrics`.

use harms::*;

struct Leak;
harms::guest!(Leak);

impl Harm for Leak {
    const NAME: &str = "leak";

    fn describe() -> Manifest {
        Manifest { secrets: vec!["TOKEN".into()], ..manifest(Self::NAME) }
    }

    fn harm(message: &Message) -> Result<Verdict, String> {
        let token = secrets::get("TOKEN").unwrap_or_default();
        log::log(log::Level::Error, &format!("token {token}"));
        metrics::count(&token.to_lowercase(), 1);
        if message.payload.contains("as an error") {
            return Err(format!("token {token}"));
        }
        let finding = Finding { code: "told".into(), message: format!("token {token}") };
        let refusal = Refusal {
            code: "told".into(),
            reason: format!("token {token}"),
            detail: Some(format!("token {token}")),
        };
        let decision = Decision::Refuse(refusal);
        Ok(Verdict { decision, labels: vec![], findings: vec![finding] })
    }
}
