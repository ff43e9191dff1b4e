//! The chain of interceptors of a config.

use std::{sync::Arc, time::Duration};

use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};

use super::BuildFindings;
use crate::{
    plugins::{self, BoxedDiagnostic, LoadedPlugin},
    recorder::startup_events,
};
use portcullis_chain::{ChainEntry, Interceptor};
use portcullis_config::{Code, Loaded, Member};
use portcullis_interceptors::{
    InterceptorKind,
    argument_names::ArgumentNames,
    policy::PolicyGate,
    rate_limit::RateLimit,
    schema::Schema,
    secrets::{self, Known, Secrets},
};
use portcullis_plugin_host::PluginHost;

/// The default of an entry's `deadline-ms`.
const DEADLINE: Duration = Duration::from_millis(1_000);
/// Time beyond a plugin's own deadline before the chain stops waiting for it.
const SLACK: Duration = Duration::from_millis(250);

/// The chain of a config: first message counts, then policy, then defaults, then the remaining
/// entries in the config's order. Policy precedes everything that is not native code or is
/// expensive: an unauthorized message reaches no plugin.
pub(super) fn links(
    loaded: &Loaded,
    gate: Arc<PolicyGate>,
    known_secrets: &[Known],
    (delivered, plugin_host): (&plugins::PluginSecrets, &PluginHost),
    gathered: &mut BuildFindings,
) -> Vec<ChainEntry> {
    let chain = loaded.config.chain();
    let chain: Vec<_> = chain.iter().filter(|member| member.entry.is_on()).collect();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    // Only compiling takes long.
    let loaded_plugins: Vec<_> = chain
        .par_iter()
        .map(|member| match (&member.entry.kind, member.at) {
            (InterceptorKind::Plugin(config), Some(at)) => {
                Some((at, plugins::load(loaded, at, &member.entry, config, delivered, plugin_host)))
            }
            _ => None,
        })
        .collect();
    for (member, plugin) in chain.into_iter().zip(loaded_plugins) {
        let entry = &*member.entry;
        let built = match (&entry.kind, plugin) {
            (InterceptorKind::Plugin(config), Some((at, plugin))) => match plugin {
                Ok(plugin) => {
                    gathered.found.extend(plugins::ungranted(loaded, at, entry, gate.engine()));
                    let event = startup_events::plugin(entry, config, &plugin.now());
                    gathered.happened.push(event.into());
                    let plugin = Arc::new(plugin);
                    gathered
                        .plugins
                        .push(LoadedPlugin { entry: entry.clone(), plugin: plugin.clone() });
                    let engine = gate.engine().clone();
                    let plugin = plugins::GatedPlugin::new(plugin, config.grants.clone(), engine);
                    Ok(Arc::new(plugin) as Arc<dyn Interceptor>)
                }
                Err(wrong) => {
                    let why = wrong.to_string();
                    let event = startup_events::no_plugin(entry, &config.place(), why);
                    gathered.happened.push(event.into());
                    Err(wrong)
                }
            },
            (InterceptorKind::Secrets(config), _) => scanner(loaded, member, config, known_secrets)
                .map(|scanner| {
                    gathered.scanners.push(scanner.clone());
                    scanner as Arc<dyn Interceptor>
                }),
            _ => interceptor(loaded, member, known_secrets, delivered, plugin_host),
        };
        let interceptor = match built {
            Ok(interceptor) => interceptor,
            Err(wrong) => {
                gathered.found.push(wrong);
                continue;
            }
        };
        let settings = &entry.settings;
        let deadline = settings.deadline_ms.map_or(DEADLINE, Duration::from_millis);
        let link = ChainEntry {
            interceptor,
            mode: settings.mode,
            fail_open: settings.fail_open,
            deadline: match entry.kind {
                InterceptorKind::Plugin(_) => deadline + SLACK,
                _ => deadline,
            },
            events: settings.events.clone(),
            // A default has no line, so its rules refer to the first entry, or to the file.
            place: Some((loaded.path.clone(), loaded.line(&pointer(member)).unwrap_or(1))),
        };
        match entry.kind {
            InterceptorKind::RateLimit(_) => first.push(link),
            _ => rest.push(link),
        }
    }
    first.push(ChainEntry::strict(gate));
    first.push(ChainEntry::strict(Arc::new(ArgumentNames)));
    first.extend(rest);
    first
}

/// The JSON pointer of a chain member in the config.
fn pointer(member: &Member<'_>) -> String {
    member.at.map_or_else(|| "/interceptors".to_owned(), |at| format!("/interceptors/{at}"))
}

/// The interceptor that finds secrets.
fn scanner(
    loaded: &Loaded,
    member: &Member<'_>,
    config: &secrets::Config,
    known_secrets: &[Known],
) -> Result<Arc<Secrets>, BoxedDiagnostic> {
    let name = member.entry.name();
    let built = Secrets::new(name, config, known_secrets).map(Arc::new);
    built.map_err(|error| -> BoxedDiagnostic {
        let what = format!("`{name}`: {error}");
        Box::new(loaded.finding(&pointer(member), Code::BadValue, what))
    })
}

/// Makes the interceptor of a chain member. Blocks while a plugin compiles.
///
/// # Errors
/// The error of the entry, with its position in the config.
pub fn interceptor(
    loaded: &Loaded,
    member: &Member<'_>,
    known_secrets: &[Known],
    delivered: &plugins::PluginSecrets,
    plugin_host: &PluginHost,
) -> Result<Arc<dyn Interceptor>, BoxedDiagnostic> {
    let entry = &*member.entry;
    let name = entry.name();
    let invalid = |error: &dyn std::error::Error| -> BoxedDiagnostic {
        let what = format!("`{name}`: {error}");
        Box::new(loaded.finding(&pointer(member), Code::BadValue, what))
    };
    Ok(match &entry.kind {
        InterceptorKind::RateLimit(config) => {
            Arc::new(RateLimit::new(name, config).map_err(|error| invalid(&error))?)
        }
        InterceptorKind::Schema(config) => {
            Arc::new(Schema::new(name, config).map_err(|error| invalid(&error))?)
        }
        InterceptorKind::Secrets(config) => scanner(loaded, member, config, known_secrets)?,
        InterceptorKind::Plugin(config) => {
            // Defaults contain no plugin.
            let at = member.at.unwrap_or_default();
            Arc::new(plugins::load(loaded, at, entry, config, delivered, plugin_host)?)
        }
    })
}
