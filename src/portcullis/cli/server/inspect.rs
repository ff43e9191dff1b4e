//! `portcullis server inspect`: permissions and restrictions of a server in words, each deviation
//! with its line in the config, and the decisions of policies about its start.

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    cli::{Context, Exit},
    manage::{
        server_facts::{PartDecision, ServerFacts},
        servers::{configured, launcher, signatures},
    },
};
use portcullis_config::Loaded;
use portcullis_gateway::admin;
use portcullis_protocol::names::ServerName;
use portcullis_upstream::{
    Placement,
    config::{SecretBinding, SecretDeliveryMethod, Server},
};

mod describe;

/// Permission that the config gives.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Permission {
    what: String,
    /// Key below `[servers.NAME]`; `line` is its line, if the config has the key.
    config_key: String,
    line: Option<u32>,
}

/// Runs the verb.
pub(super) async fn run(
    ctx: &Context,
    loaded: &Loaded,
    proxy: Option<admin::Client>,
    name: &ServerName,
) -> anyhow::Result<Exit> {
    let settings = configured(loaded, name)?;
    let mut launcher = launcher(loaded).await;
    launcher.signatures = signatures(loaded)?;
    let found = ServerFacts::of(loaded, &launcher, name, settings, None).await?;
    let running: Option<Value> = match proxy {
        Some(proxy) => {
            let states: Vec<Value> =
                proxy.get_json("/v1/servers").await.context("asking the proxy that runs")?;
            states.into_iter().find(|state| state["name"] == name.as_str())
        }
        None => None,
    };
    let may = describe::may(loaded, name, settings, &found);
    let may_not = describe::may_not(settings, &found.placement);
    if ctx.is_json() {
        ctx.json(&machine(loaded, name, settings, &found, running.as_ref(), (&may, &may_not)))?;
        return Ok(Exit::Ok);
    }
    let (file, chain) = (loaded.path.display().to_string(), loaded.config.chain_in_words());
    let page = Page { ctx, file, chain };
    page.print(name, settings, &found, running.as_ref(), (&may, &may_not))?;
    Ok(Exit::Ok)
}

fn deviations(loaded: &Loaded, name: &ServerName, found: &ServerFacts) -> Vec<Value> {
    let all = found.deviations.iter().map(|deviation| {
        json!({
            "field": deviation.field,
            "default": deviation.default,
            "actual": deviation.actual,
            "configKey": deviation.config_key,
            "line": line(loaded, name, deviation.config_key),
        })
    });
    all.collect()
}

fn line(loaded: &Loaded, name: &ServerName, key: &str) -> Option<u32> {
    loaded.written(&format!("/servers/{name}/{}", key.replace('.', "/")))
}

fn machine(
    loaded: &Loaded,
    name: &ServerName,
    settings: &Server,
    found: &ServerFacts,
    running: Option<&Value>,
    (may, may_not): (&[Permission], &[String]),
) -> Value {
    let fields = found.profile.iter().cloned();
    let profile: Map<String, Value> = fields.map(|(field, value)| (field, value.into())).collect();
    let mut description = json!({
        "name": name,
        "place": found.placement.kind(),
        "why": found.placement.why(),
        "running": running,
        "image": settings.image,
        "digest": found.digest,
        "profile": profile,
        "deviations": deviations(loaded, name, found),
        "file": loaded.path.display().to_string(),
        "may": may,
        "mayNot": may_not,
        "secrets": secrets(settings),
        "chain": loaded.config.chain_view(),
        "launch": match &found.decisions {
            Ok(decisions) => {
                json!({ "allowed": found.allowed(), "decisions": decisions, "unsigned": found.unsigned })
            }
            Err(why) => json!({ "allowed": false, "error": why }),
        },
    });
    if settings.url.is_none() {
        description["limits"] = json!(settings.resources);
        description["mounts"] = json!(settings.mounts);
        description["egress"] = json!(settings.egress);
    }
    description
}

fn secrets(settings: &Server) -> Vec<Value> {
    let all = settings.secret_bindings().map(|binding| {
        let mut entry = json!({ "name": binding.name, "as": "header" });
        if let Some(delivery) = binding.delivery {
            entry["as"] = json!(delivery);
        }
        if !binding.by_client.is_empty() {
            entry["clients"] = binding.by_client.keys().cloned().collect();
            entry["others"] = binding.from.is_some().into();
        }
        entry
    });
    all.collect()
}

/// The same facts as text for people.
struct Page<'a> {
    ctx: &'a Context,
    file: String,
    /// Interceptors that its messages pass.
    chain: String,
}

impl Page<'_> {
    fn print(
        &self,
        name: &ServerName,
        settings: &Server,
        found: &ServerFacts,
        running: Option<&Value>,
        (may, may_not): (&[Permission], &[String]),
    ) -> anyhow::Result<()> {
        let Self { ctx, .. } = self;
        ctx.line(format_args!(
            "server {name}: {} ({})",
            found.placement.kind(),
            found.placement.why()
        ))?;
        if let Some(running) = running {
            let text = |key: &str| running[key].as_str().unwrap_or("").to_owned();
            ctx.line(format_args!("{} {} {}", text("state"), text("process"), text("revision")))?;
        }
        if let Some(image) = &settings.image {
            ctx.line(format_args!("image: {image}"))?;
        }
        if let Some(digest) = &found.digest {
            ctx.line(format_args!("digest: {digest}"))?;
        }
        self.head("it may:")?;
        for one in may {
            let key = &one.config_key;
            let placement = match one.line {
                Some(line) => format!("  [{key}, {}:{line}]", self.file),
                None => String::new(),
            };
            ctx.line(format_args!("  - {}{placement}", one.what))?;
        }
        self.head("it may not:")?;
        for one in may_not {
            ctx.line(format_args!("  - {one}"))?;
        }
        self.secrets(settings)?;
        self.head(&format!("its messages pass: {}", self.chain))?;
        self.decided(found)?;
        if matches!(found.placement, Placement::Remote { .. }) {
            return Ok(());
        }
        if found.deviations.is_empty() {
            self.head("no deviation from the hardened default profile, which is:")?;
        } else {
            self.head("the hardened default profile, with the deviations above:")?;
        }
        let rows = found.profile.iter().map(|(field, value)| [field.clone(), value.clone()]);
        ctx.table(&["SETTING", "VALUE"], rows)?;
        Ok(())
    }

    /// Prints a line with an empty line before it.
    fn head(&self, text: &str) -> anyhow::Result<()> {
        self.ctx.line("")?;
        Ok(self.ctx.line(text)?)
    }

    fn secrets(&self, settings: &Server) -> anyhow::Result<()> {
        let one = |binding: SecretBinding<'_>| {
            let by = match binding.delivery {
                Some(SecretDeliveryMethod::Env) => "in its environment",
                Some(SecretDeliveryMethod::File) => "as a file in memory",
                None => "a header of ours",
            };
            let own: Vec<_> = binding.by_client.keys().map(String::as_str).collect();
            let own = match (own.is_empty(), binding.from.is_some()) {
                (true, _) => String::new(),
                (false, true) => format!("; own ones for {}", own.join(", ")),
                (false, false) => format!("; for {} alone", own.join(", ")),
            };
            format!("{} ({by}{own})", binding.name)
        };
        let all: Vec<String> = settings.secret_bindings().map(one).collect();
        if !all.is_empty() {
            self.head(&format!("it is handed the secrets: {}", all.join(", ")))?;
        }
        Ok(())
    }

    fn decided(&self, found: &ServerFacts) -> anyhow::Result<()> {
        let decisions = match &found.decisions {
            Ok(decisions) => decisions,
            Err(why) => {
                let text = format!("policies can't be loaded, so it can't be started: {why}");
                return self.head(&text);
            }
        };
        if let Some(why) = &found.unsigned {
            self.head(&format!("it can't be started, whatever policies say: {why}"))?;
        }
        let let_it = decisions.iter().all(|one| one.allowed);
        let would = if let_it { "let" } else { "do NOT let" };
        self.head(&format!("policies {would} it be started:"))?;
        for PartDecision { action, target, why, rules, .. } in decisions {
            self.ctx.line(format_args!("  - {action} {target}: {why}"))?;
            for rule in rules {
                let file = rule.file.as_ref().map(|file| file.display().to_string());
                let place = file.zip(rule.line).map(|(file, line)| format!("{file}:{line}"));
                let reason = rule.reason.as_ref().map(|reason| format!(" ({reason})"));
                let place = place.unwrap_or_else(|| "not in a file".to_owned());
                self.ctx.line(format_args!(
                    "    `{}` at {place}{}",
                    rule.id,
                    reason.unwrap_or_default()
                ))?;
            }
        }
        Ok(())
    }
}
