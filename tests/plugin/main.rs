//! Plugins, built from source and called through the interceptor: their function and their
//! containment.

mod containment;
mod example;
mod fairness;
mod grants;
mod harms;
mod load_errors;
mod reload;
mod sessions;
mod signed;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Instant,
};

use portcullis_chain::{Fault, Interceptor, Verdict};
use portcullis_interceptors::{
    EntrySettings,
    plugin::{Config, Plugin},
};
use portcullis_plugin_host::{HostServices, LoadError, PluginHost};
use portcullis_protocol::{
    exchange::{Answer, Direction, Exchange, Method, Payload, Phase, Revision, Target, Transport},
    identity::{Principal, PrincipalKind},
    names::{DecisionId, SessionId},
};
use serde_json::{Value, json};

/// A built plugin. All are built, once, when the first is asked for.
fn built(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let status = Command::new(root.join("plugins/build")).status().expect("plugins/build runs");
        assert!(status.success(), "plugins/build failed");
        root.join("target/plugins")
    });
    folder.join(name).with_extension("wasm")
}

fn config(name: &str) -> Config {
    let entry = json!({ "path": built(name), "allow-unpinned": true });
    serde_json::from_value(entry).expect("a legal entry")
}

fn load(config: &Config, settings: &EntrySettings) -> Result<Plugin, LoadError> {
    let secrets = config.secrets(Path::new(".")).expect("secrets");
    Plugin::load(config, settings, Path::new("."), secrets, &PluginHost::bare())
}

/// A call of a tool, with this for an answer where there is one.
fn call(tool: &str, arguments: Value, answer: Option<Value>) -> Exchange {
    Exchange {
        id: DecisionId::next(),
        at: jiff::Timestamp::now(),
        started: Instant::now(),
        principal: Arc::new(Principal {
            kind: PrincipalKind::Local { user: "tester".into() },
            groups: Vec::new(),
            verified: true,
            key: None,
        }),
        direction: Direction::ClientToServer,
        method: Method::new(Method::TOOLS_CALL),
        notification: false,
        transport: Transport::Stdio,
        client_addr: None,
        session: None,
        session_calls: 0,
        revision: Revision::LATEST_LEGACY,
        server: Some("notes".parse().expect("a legal name")),
        target: Target::Tool { name: tool.into(), tool: None },
        request: Payload::from(json!({ "name": tool, "arguments": arguments })),
        response: answer.map(|answer| Answer::Result(Payload::from(answer))),
        labels: BTreeSet::new(),
        obligations: Default::default(),
        trace: None,
    }
}

async fn ask(plugin: &Plugin, tool: &str) -> Result<Verdict, Fault> {
    plugin.inspect(&call(tool, json!({}), None), Phase::Request).await
}

/// The same for another user.
async fn ask_as(plugin: &Plugin, tool: &str, user: &str) -> Result<Verdict, Fault> {
    plugin.inspect(&by(user, None, tool), Phase::Request).await
}

/// A call of a tool by that user, in that session.
fn by(user: &str, session: Option<&str>, tool: &str) -> Exchange {
    Exchange {
        principal: Arc::new(Principal {
            kind: PrincipalKind::Local { user: user.into() },
            groups: Vec::new(),
            verified: true,
            key: None,
        }),
        session: session.map(SessionId::presented),
        ..call(tool, json!({}), None)
    }
}
