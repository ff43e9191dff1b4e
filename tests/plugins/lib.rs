//! What the guests in `examples/` share.

wit_bindgen::generate!({ path: "../../plugins/wit", world: "plugin", pub_export_macro: true, default_bindings_module: "guests" });

pub use exports::portcullis::interceptor::guest::*;
pub use portcullis::interceptor::log::{Level, log};
pub use portcullis::interceptor::{clock, http, metrics, random, secrets, state};

pub fn manifest(name: &str, event: &str) -> Manifest {
    let hook = |phase| Hook { events: vec![event.into()], phase };
    Manifest {
        name: name.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        description: env!("CARGO_PKG_DESCRIPTION").into(),
        hooks: vec![hook(Phase::Request), hook(Phase::Response)],
        lifetime: Lifetime::Message,
        config_schema: None,
        hosts: vec![],
        secrets: vec![],
        once: false,
        options: vec![],
    }
}

pub fn verdict(decision: Decision) -> Verdict {
    Verdict { decision, labels: vec![], findings: vec![] }
}

pub fn refuse(code: &str, reason: impl Into<String>) -> Decision {
    Decision::Refuse(Refusal { code: code.into(), reason: reason.into(), detail: None })
}
