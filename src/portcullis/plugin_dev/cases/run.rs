//! Finds case files, runs them, and reports the results.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use miette::LabeledSpan;
use serde::Serialize;

use super::{
    StubServices,
    expand::{CaseMessage, MessageSequence, Span, expand},
    file::{Case, Document},
    message::message,
    verdict::{CaseOutcome, misses, taken},
};
use portcullis_foundation::units::Size;
use portcullis_plugin_host::{
    Compiled, Function, Grants, Inspection, Message, Pin, Plugin, PluginHost, Settings, Target,
};
use portcullis_policy::{File, Finding};
use portcullis_policy_tools::{is_case_file, read_cases, span};
use portcullis_protocol::exchange::Phase;
use portcullis_vault::Secret;
use portcullis_vault::SecretRef;

/// Defaults of the proxy's config.
const DEADLINE_MS: u64 = 1_000;
const MEMORY_MIB: u64 = 64;
const STATE: Size = Size(1 << 20);

/// Results of all cases.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Files that could not be read and cases that could not run.
    pub findings: Vec<Finding>,
    pub cases: Vec<CaseReport>,
    /// Hooks of the plugins that no case covers.
    pub unmet: Vec<Hook>,
}

/// Phase of a method that a plugin handles.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Hook {
    pub plugin: String,
    pub event: String,
    pub phase: &'static str,
}

/// Result of one case.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    pub file: PathBuf,
    /// Line, from 1.
    pub line: u32,
    pub name: String,
    pub plugin: String,
    pub expected: &'static str,
    pub actual: &'static str,
    /// Result as a sentence.
    pub summary: String,
    /// Duration of the verdict, including the overhead of the host.
    pub micros: u64,
    pub passed: bool,
    /// Reason for a failure.
    #[serde(skip)]
    pub failure: Option<Finding>,
}

/// Runs the cases of files and folders. `component` replaces the components that the files name.
/// Names are relative to `base`. Only cases with `filter` in their name run; case is ignored.
pub async fn run(
    paths: &[PathBuf],
    component: Option<&Path>,
    base: &Path,
    filter: Option<&str>,
) -> Report {
    let mut runner = Runner {
        base,
        component,
        filter: filter.map(str::to_lowercase),
        compiled: HashMap::new(),
        report: Report { findings: Vec::new(), cases: Vec::new(), unmet: Vec::new() },
        met: BTreeSet::new(),
    };
    for file in runner.find(paths) {
        runner.file(file).await;
    }
    runner.finish()
}

struct Runner<'a> {
    base: &'a Path,
    component: Option<&'a Path>,
    filter: Option<String>,
    compiled: HashMap<PathBuf, Option<Rc<Compiled>>>,
    report: Report,
    /// Hooks that matched a message.
    met: BTreeSet<Hook>,
}

impl Runner<'_> {
    fn wrong(&mut self, finding: Finding) {
        self.report.findings.push(finding);
    }

    /// Case files at these paths, each once, in order.
    fn find(&mut self, paths: &[PathBuf]) -> Vec<PathBuf> {
        let mut files = BTreeSet::new();
        for path in paths {
            let full = self.base.join(path);
            let found = match fs::metadata(&full) {
                Ok(data) if data.is_dir() => fs::read_dir(&full).map(|entries| {
                    let names =
                        entries.filter_map(|entry| Some(path.join(entry.ok()?.file_name())));
                    names.filter(|name| is_case_file(name)).collect::<Vec<_>>()
                }),
                Ok(_) => Ok(vec![path.clone()]),
                Err(error) => Err(error),
            };
            match found {
                Ok(found) => files.extend(found.into_iter().map(path_clean::clean)),
                Err(error) => {
                    let message = format!("cannot read {}: {error}", path.display());
                    self.wrong(Finding::error("plugin-cases-unreadable", message).file(path));
                }
            }
        }
        files.into_iter().collect()
    }

    async fn file(&mut self, name: PathBuf) {
        let text = match fs::read_to_string(self.base.join(&name)) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot read {}: {error}", name.display());
                return self.wrong(Finding::error("plugin-cases-unreadable", message).file(name));
            }
        };
        let file = File { name, text: text.into() };
        let document: Document = match read_cases(&file, "plugin-cases") {
            Ok(document) => document,
            Err(finding) => return self.wrong(*finding),
        };
        let (all, findings) = expand(&file, &document);
        self.report.findings.extend(findings);
        let Some(compiled) = self.compiled(&file, &document) else { return };
        for (nth, sequence) in all.iter().enumerate() {
            let wanted = self.filter.as_ref();
            if wanted.is_some_and(|part| !sequence.name.to_lowercase().contains(part)) {
                continue;
            }
            self.case(&file, &document, &compiled, sequence, nth).await;
        }
    }

    /// Component of a file; its errors are reported only once.
    fn compiled(&mut self, file: &File, document: &Document) -> Option<Rc<Compiled>> {
        let folder = file.name.parent().unwrap_or(Path::new(""));
        let path = match (self.component, &document.plugin) {
            (Some(component), _) => component.to_owned(),
            (None, Some(named)) => folder.join(&named.value),
            (None, None) => {
                let name = file.name.file_name().unwrap_or_default().to_string_lossy();
                let stem = name.split_once(".test.").map_or(&*name, |(stem, _)| stem);
                folder.join("target").join(format!("{stem}.wasm"))
            }
        };
        if let Some(cached) = self.compiled.get(&path) {
            return cached.clone();
        }
        let full = self.base.join(&path);
        let read = match full.exists() {
            true => Compiled::read(&full, Pin::Any).map_err(|unusable| {
                let help = miette::Diagnostic::help(&unusable).map(|help| help.to_string());
                (unusable.to_string(), help.unwrap_or_default())
            }),
            false => Err((
                format!("there is no plugin at {}", path.display()),
                match folder.as_os_str().is_empty() {
                    true => "`portcullis plugin build` makes it".to_owned(),
                    false => format!("`portcullis plugin build {}` makes it", folder.display()),
                },
            )),
        };
        let compiled = match read {
            Ok(compiled) => Some(Rc::new(compiled)),
            Err((message, help)) => {
                let finding = Finding::error("plugin-unusable", message);
                let finding = match &document.plugin {
                    Some(named) if self.component.is_none() => {
                        let (start, length) = span(file, named.referenced);
                        finding.at(file, start, length, "is named here")
                    }
                    _ => finding.file(&file.name),
                };
                self.wrong(finding.help(help));
                None
            }
        };
        self.compiled.insert(path, compiled.clone());
        compiled
    }

    async fn case(
        &mut self,
        file: &File,
        document: &Document,
        compiled: &Compiled,
        sequence: &MessageSequence,
        nth: usize,
    ) {
        let services = Arc::new(StubServices::default());
        let Some(first) = sequence.messages.first() else { return };
        let settings = settings(&first.case, document, compiled);
        let plugin_host = PluginHost { services: services.clone(), ..PluginHost::bare() };
        // As in the proxy, errors of a plugin are found before the first message.
        let mut plugin = Some(compiled.plugin(settings, &plugin_host));
        let mut filled = false;
        for (step, one) in sequence.messages.iter().enumerate() {
            let name = match sequence.messages.len() {
                1 => sequence.name.clone(),
                _ => format!("{} (step {})", sequence.name, step + 1),
            };
            let message = match message(&one.case, &document.principals, nth * 100 + step) {
                Ok(message) => message,
                Err(why) => {
                    let (start, length) = one.place;
                    let message = format!("{name}: the message is invalid");
                    let finding = Finding::error("plugin-cases", message);
                    self.wrong(finding.at(file, start, length, &why));
                    return;
                }
            };
            let before = Instant::now();
            let (outcome, took) = match &plugin {
                Some(Ok(plugin)) => {
                    if !filled && let Err(why) = fill(plugin, &one.case) {
                        return self.wrong(unfilled(file, one, &why));
                    }
                    filled = true;
                    services.prepare(one.case.now, one.case.http.clone().unwrap_or_default());
                    let before = Instant::now();
                    let outcome = self.ask(compiled, plugin, &message).await;
                    (outcome, before.elapsed())
                }
                Some(Err(_)) => match plugin.take() {
                    Some(Err(unusable)) => (CaseOutcome::Unusable(unusable), before.elapsed()),
                    _ => return,
                },
                None => return,
            };
            let values = plugin.as_ref().and_then(|plugin| plugin.as_ref().ok()?.values());
            let misses = misses(one, &outcome, &services.take(), values, file);
            let failure = (!misses.is_empty()).then(|| {
                let first = misses.first().map_or("", |miss| miss.message.as_str());
                let row = one.is_row.then(|| (one.place, "in this row".to_owned()));
                let labels = row
                    .into_iter()
                    .chain(misses.iter().map(|miss| (miss.place, miss.label.clone())));
                let labels = labels.map(|(place, label): (Span, String)| {
                    LabeledSpan::new(Some(label), place.0, place.1)
                });
                Finding::error("plugin-case-failed", format!("{name}: {first}"))
                    .labelled(file, labels.collect())
                    .help(shown_as(&message))
            });
            let (line, _) =
                file.position(if one.is_row { one.place.0 } else { one.expect_place.0 });
            self.report.cases.push(CaseReport {
                file: file.name.clone(),
                line,
                name,
                plugin: compiled.manifest().name.clone(),
                expected: one.expect.as_str(),
                actual: outcome.as_expected().as_str(),
                summary: outcome.shown_as(),
                micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                passed: failure.is_none(),
                failure,
            });
        }
    }

    async fn ask(
        &mut self,
        compiled: &Compiled,
        plugin: &Plugin,
        message: &Message,
    ) -> CaseOutcome {
        let met = matching_hooks(compiled, message);
        if met.is_empty() {
            let why = format!(
                "the plugin is not asked about the {} of `{}`",
                phase(message.phase),
                message.event
            );
            return CaseOutcome::Unasked(why);
        }
        self.met.extend(met);
        let Inspection { verdict, .. } =
            plugin.inspect(message.clone(), message.session_prefix.as_deref()).await;
        CaseOutcome::Answered(verdict.and_then(|verdict| taken(verdict, message)))
    }

    fn finish(mut self) -> Report {
        let all = self.compiled.values().flatten().flat_map(|compiled| hooks(compiled));
        let unmet: BTreeSet<_> = all.filter(|hook| !self.met.contains(hook)).collect();
        self.report.unmet = unmet.into_iter().collect();
        self.report.findings.sort_by_key(Finding::order);
        self.report
    }
}

/// Hooks of a plugin, one per method.
pub fn hooks(compiled: &Compiled) -> Vec<Hook> {
    let manifest = compiled.manifest();
    let all = manifest.hooks.0.iter().flat_map(|hook| {
        let phase = match hook.phase {
            Phase::Request => "request",
            Phase::Response => "response",
        };
        hook.events.iter().map(move |event| (event, phase))
    });
    all.map(|(event, phase)| Hook { plugin: manifest.name.clone(), event: event.clone(), phase })
        .collect()
}

/// Hooks of a plugin that match a message.
pub fn matching_hooks(compiled: &Compiled, message: &Message) -> Vec<Hook> {
    let half = phase(message.phase);
    let meets =
        |hook: &Hook| hook.phase == half && (hook.event == "*" || hook.event == message.event);
    hooks(compiled).into_iter().filter(meets).collect()
}

fn phase(phase: portcullis_plugin_host::Phase) -> &'static str {
    match phase {
        portcullis_plugin_host::Phase::Request => "request",
        portcullis_plugin_host::Phase::Response => "response",
    }
}

fn settings(case: &Case, document: &Document, compiled: &Compiled) -> Settings {
    let secrets = case.secrets.as_ref().or(document.secrets.as_ref()).cloned().unwrap_or_default();
    let grants = case.grants.as_ref().or(document.grants.as_ref()).cloned();
    Settings {
        entry: compiled.manifest().name.clone(),
        config: case.config.as_ref().or(document.config.as_ref()).cloned().unwrap_or_default(),
        memory_mib: document.memory_mib.unwrap_or(MEMORY_MIB),
        fail_open: false,
        trial: None,
        deadline: Duration::from_millis(document.deadline_ms.unwrap_or(DEADLINE_MS)),
        grants: grants.unwrap_or_else(|| granted(compiled, secrets.keys())),
        secrets: secrets.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
    }
}

/// Grants for everything that a component requests, with these secrets.
pub fn granted<'a>(compiled: &Compiled, secrets: impl Iterator<Item = &'a String>) -> Grants {
    let has = |function| compiled.functions().contains(&function);
    let hosts = &compiled.manifest().hosts;
    let none = SecretRef { from: "env:UNUSED".into() };
    let secrets: BTreeMap<_, _> = secrets.map(|name| (name.clone(), none.clone())).collect();
    Grants {
        log: has(Function::Log),
        clock: has(Function::Clock),
        random: has(Function::Random),
        state: has(Function::State).then_some(STATE),
        metrics: has(Function::Metrics),
        http: (has(Function::Http) || !hosts.is_empty()).then(|| hosts.clone()),
        secrets: (has(Function::Secrets) || !secrets.is_empty()).then_some(secrets),
    }
}

fn fill(plugin: &Plugin, case: &Case) -> Result<(), String> {
    let Some(state) = &case.state else { return Ok(()) };
    let values = plugin.values().ok_or("the plugin is not granted `state`")?;
    state.value.iter().try_for_each(|(key, value)| {
        values.put(key, &value.0).map_err(|why| format!("`{key}` does not fit: {why}"))
    })
}

fn unfilled(file: &File, one: &CaseMessage, why: &str) -> Finding {
    let place = one.case.state.as_ref().map_or(one.place, |state| span(file, state.referenced));
    Finding::error("plugin-cases", "the state is invalid").at(file, place.0, place.1, why)
}

/// The whole message, for a person who examines a failure.
fn shown_as(message: &Message) -> String {
    format!("asked: {}, {}", about(message), message.payload)
}

/// Description of a message without its payload.
pub fn about(message: &Message) -> String {
    let Message { event, server, target, principal, labels, .. } = message;
    let mut text = principal.name.clone();
    if !principal.groups.is_empty() {
        text += &format!(" (in {})", principal.groups.join(", "));
    }
    text += &format!(", {} of {event}", phase(message.phase));
    match (server, target) {
        (Some(server), _) => text += &format!(" on {server}"),
        (None, Target::None) => {}
        (None, _) => text += " on no server",
    }
    if !labels.is_empty() {
        text += &format!(", labelled {}", labels.join(", "));
    }
    text
}
