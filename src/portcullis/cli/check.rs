//! `portcullis check`: lists every finding in config, policies and plugins.

use std::collections::BTreeSet;

use miette::{Diagnostic, Severity};
use serde::Serialize;
use tokio::{runtime::Handle, task::spawn_blocking};

use super::{Context, Exit};
use crate::manage::{
    locked_images,
    servers::{launch_secrets, launcher},
};
use portcullis_config::{Code, Diagnostics, Loaded};
use portcullis_config::{mount_policy, refused_mounts};
use portcullis_gateway::{BoxedDiagnostic, PluginSecrets, artifacts, interceptor, ungranted};
use portcullis_plugin_host::PluginHost;
use portcullis_policy::Start;
use portcullis_protocol::{identity::Store, names::ServerName};

#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the verb.
pub async fn run(_args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let path = ctx.config.clone();
    let progress = ctx.progress("checking");
    let Checked { found, chain, absent } = spawn_blocking(move || everything(&path)).await?;
    drop(progress);
    super::policy::note_absent_servers(&absent, ctx);
    if ctx.is_json() {
        ctx.json(&found.iter().map(|one| Entry::of(one.as_ref())).collect::<Vec<_>>())?;
    } else {
        for one in &found {
            ctx.diagnostic(one.as_ref())?;
            ctx.verbatim("\n")?;
        }
        if let Some(chain) = chain {
            ctx.line(format_args!("chain: {chain}"))?;
        }
        match found.len() {
            0 => ctx.line("nothing found")?,
            1 => ctx.line("1 finding")?,
            many => ctx.line(format!("{many} findings"))?,
        }
    }
    Ok(if found.is_empty() { Exit::Ok } else { Exit::Findings })
}

/// Result of all checks.
struct Checked {
    found: Vec<BoxedDiagnostic>,
    /// The chain, if the config can be read.
    chain: Option<String>,
    /// Servers that policies name and the config lacks.
    absent: BTreeSet<String>,
}

fn everything(path: &std::path::Path) -> Checked {
    let mut absent = BTreeSet::new();
    let loaded = match portcullis_config::load(path) {
        Ok(loaded) => loaded,
        // Other files cannot be found without the config.
        Err(Diagnostics(findings)) => {
            let found = findings.into_iter().map(boxed).collect();
            return Checked { found, chain: None, absent };
        }
    };
    let mut found: Vec<BoxedDiagnostic> = loaded.warnings.iter().cloned().map(boxed).collect();
    match portcullis_policy::Engine::open(
        portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir),
        &loaded.base,
    ) {
        Ok(engine) => {
            let status = engine.status();
            let inventory = super::policy::inventory(&loaded);
            let looks = engine.analyse(&inventory);
            absent = engine.absent_servers(&inventory);
            let warnings = status.borrow().warnings.clone();
            found.extend(warnings.iter().chain(&looks).map(|warning| placed(&loaded, warning)));
            let entries = loaded.config.interceptors.iter().enumerate();
            let entries = entries.filter(|(_, entry)| entry.is_on());
            found.extend(entries.flat_map(|(at, entry)| ungranted(&loaded, at, entry, &engine)));
            found.extend(unstartable(&loaded, &engine));
            found.extend(too_weak(&loaded, &engine));
        }
        Err(diagnostics) => {
            found.extend(diagnostics.findings().iter().map(|finding| placed(&loaded, finding)));
        }
    }
    // Nothing is cached here: the cache belongs to the user of the proxy.
    let plugin_host = PluginHost { artifacts: artifacts(&loaded, false), ..PluginHost::bare() };
    let handed = PluginSecrets::read(&loaded, &mut found);
    for member in loaded.config.chain() {
        if member.entry.is_on() {
            found.extend(interceptor(&loaded, &member, &[], &handed, &plugin_host).err());
        }
    }
    for (at, text) in locked_images::check_pins(&loaded).err().into_iter().flatten() {
        found.push(boxed(loaded.finding(&at, Code::Conflict, text)));
    }
    for (at, text) in locked_images::unconfirmed(&loaded) {
        let finding = loaded.finding(&at, Code::Unsafe, text).warning();
        let help = "if that is meant, name it (`--secret NAME=REFERENCE`) and replace the server with `--replace=NAME`; \
                    else replace it without, and it gets a variable of its own";
        found.push(boxed(finding.help(help)));
    }
    if let Err((at, text)) = loaded.signatures() {
        found.push(boxed(loaded.finding(&at, Code::BadValue, text)));
    }
    found.extend(refused_mounts(&mount_policy(&loaded), &loaded).into_iter().map(boxed));
    for (role, at, member) in loaded.config.admin.roles.members() {
        if member.id().is_none() {
            let message = format!("`{member}` is not known on this machine: no user has the role");
            let pointer = format!("/admin/roles/{role}/{at}");
            let finding = loaded.finding(&pointer, Code::BadValue, message).warning();
            found.push(boxed(finding.help("correct the name, or add the user or group")));
        }
    }
    if let Err(error) = Store::in_state_dir(&loaded.config.state_dir).read() {
        found.push(boxed(UnlocatedFinding { code: "clients-broken", message: error.to_string() }));
    }
    Checked { found, chain: Some(loaded.config.chain_in_words()), absent }
}

/// Servers that cannot start because a part of their start has no permit.
fn unstartable(loaded: &Loaded, policies: &portcullis_policy::Engine) -> Vec<BoxedDiagnostic> {
    let finding =
        |(name, settings): (&ServerName, &portcullis_upstream::config::Server)| -> Option<BoxedDiagnostic> {
            let first = settings.command.as_ref().and_then(|command| command.first());
            let program = settings.url.as_ref().or(settings.image.as_ref()).or(first)?;
            // Permits are found by entity, so only the name counts.
            let program = portcullis_policy::Program {
                runtime: "",
                name: program.clone(),
                digest: None,
                deviations: Vec::new(),
                signers: Vec::new(),
                attested: Vec::new(),
            };
            let (url, secrets) = (settings.url.as_deref(), launch_secrets(settings));
            let start = Start { server: name, program: &program, url, secrets };
            let missing = policies.missing_permits(&start);
            if missing.is_empty() {
                return None;
            }
            let message = format!("no policy lets the server `{name}` start");
            let finding = loaded.finding(&format!("/servers/{name}"), Code::NotPermitted, message);
            let help = format!(
                "add to a file of policies, and bound it with a condition (`portcullis server inspect \
             {name}` says what it asks for):\n{}",
                missing.join("\n")
            );
            Some(boxed(finding.warning().help(help)))
        };
    loaded.config.servers.iter().filter_map(finding).collect()
}

/// Servers that cannot start because no policy permits their deviations from the hardened profile.
fn too_weak(loaded: &Loaded, policies: &portcullis_policy::Engine) -> Vec<BoxedDiagnostic> {
    let launcher = Handle::current().block_on(launcher(loaded));
    let finding = |(name, settings): (&ServerName, &portcullis_upstream::config::Server)| {
        // Another check reports a profile that no server may have.
        let program = launcher.program_of(name, settings, None).ok()?;
        let program = program.for_policies(&launcher.placement(settings));
        let refused = policies.refused_deviations(name, &program)?;
        let message =
            format!("no policy lets the server `{name}` start with {}", refused.quoted('`'));
        let key = refused.keys.first().map_or_else(String::new, |key| key.replace('.', "/"));
        let pointer = format!("/servers/{name}/{key}");
        let help = format!(
            "add {} to the deviations that {} permits, or remove it from the config; `portcullis \
             server inspect {name}` shows the profile",
            refused.quoted('"'),
            refused.places()
        );
        Some(boxed(loaded.finding(&pointer, Code::NotPermitted, message).warning().help(help)))
    };
    loaded
        .config
        .servers
        .iter()
        .filter(|(_, settings)| settings.url.is_none())
        .filter_map(finding)
        .collect()
}

/// Diagnostic for a finding of the policies. A finding without a policy text points to the config's
/// `paths` or `bundle`.
fn placed(loaded: &Loaded, finding: &portcullis_policy::Finding) -> BoxedDiagnostic {
    if finding.labels().is_some_and(|mut labels| labels.next().is_some()) {
        return boxed(finding.clone());
    }
    if loaded.config.policy.bundle.is_some() {
        return boxed(loaded.locate("/policy/bundle", finding.clone()));
    }
    let message = finding.to_string();
    let mut paths = loaded.config.policy.paths.iter();
    let pointer = match paths.position(|path| message.contains(&*path.to_string_lossy())) {
        Some(at) => format!("/policy/paths/{at}"),
        None => "/policy/paths".into(),
    };
    boxed(loaded.locate(&pointer, finding.clone()))
}

fn boxed(diagnostic: impl Diagnostic + Send + Sync + 'static) -> BoxedDiagnostic {
    Box::new(diagnostic)
}

/// Finding about a file that no person writes.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct UnlocatedFinding {
    code: &'static str,
    message: String,
}

impl Diagnostic for UnlocatedFinding {
    fn code<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }
}

/// Finding as output for programs.
#[derive(Debug, Serialize)]
struct Entry {
    code: Option<String>,
    severity: &'static str,
    file: Option<String>,
    /// Line, from 1.
    line: Option<usize>,
    /// Column in characters, from 1.
    column: Option<usize>,
    message: String,
    help: Option<String>,
}

impl Entry {
    fn of(found: &dyn Diagnostic) -> Self {
        let label = found.labels().and_then(|mut labels| labels.next());
        let source = found.source_code();
        let before = source.and_then(|source| {
            let offset = label.as_ref().map_or(0, |label| label.offset());
            source.read_span(&(0, offset).into(), 0, 0).ok()
        });
        let position = before.as_ref().filter(|_| label.is_some()).map(|before| {
            let text = String::from_utf8_lossy(before.data());
            let line = text.matches('\n').count() + 1;
            (line, text.rsplit('\n').next().unwrap_or_default().chars().count() + 1)
        });
        let help = found.help().map(|help| help.to_string());
        let label = label.as_ref().and_then(|label| label.label());
        Self {
            code: found.code().map(|code| code.to_string()),
            severity: match found.severity() {
                Some(Severity::Advice | Severity::Warning) => "warning",
                Some(Severity::Error) | None => "error",
            },
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            file: before.and_then(|before| before.name().map(str::to_owned)),
            message: found.to_string(),
            help: match (label, help) {
                (Some(label), Some(help)) => Some(format!("{label}; {help}")),
                (label, help) => help.or(label.map(str::to_owned)),
            },
        }
    }
}
