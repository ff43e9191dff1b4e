//! The policy engine: one validated policy set at a time, and its decisions.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use cedar_policy::{Effect, Entities, EntityUid, PolicyId};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use super::{
    about::About,
    analysis::{self, Inventory},
    bundle::Origin,
    cache::CachedSubject,
    conditions::ContextUsage,
    context,
    diagnostics::{Diagnostics, Finding},
    entities::Frame,
    index::{Index, Terms},
    load::{self, Loaded, Revision},
    request::{Action, Circumstances, Request, Resource, Subject},
    request_error::RequestError,
    schema_context::SchemaContext,
    source::Source,
    typed::Typed,
};
use portcullis_protocol::refusal::Rule;

/// Policy engine. A reload replaces the set; decisions in flight finish on the old one.
pub struct Engine {
    source: Source,
    base: PathBuf,
    /// Whether it decides for a running proxy, so that accepted bundle versions are remembered.
    in_force: AtomicBool,
    /// Schema context of sets without typed tools.
    plain: Arc<SchemaContext>,
    current: ArcSwap<Set>,
    /// Serializes reloads, so that two of them cannot overtake each other.
    reloading: Mutex<()>,
    status: watch::Sender<Status>,
    /// Receives every reload.
    listener: Mutex<Option<mpsc::Sender<Reload>>>,
}

/// Visibility checks of one subject.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    engine: &'a Engine,
    subject: Subject<'a>,
    cached: CachedSubject<'a>,
}

/// Result of reading the files again.
#[derive(Debug, Clone)]
pub enum Reload {
    /// The files are in use from now on.
    Taken(Status),
    /// The files are invalid and not used.
    Rejected(Diagnostics),
}

/// Maximum number of reloads in the channel; the next reload waits for the receiver.
const RELOADS: usize = 16;

/// Policy set in use. The caches of its answers are dropped with it.
pub(super) struct Set {
    pub(super) loaded: Loaded,
    /// Number among all sets that were in use, from 1.
    generation: u64,
    /// Index of the policies in force.
    index: Index,
    /// Index of the policies in shadow mode, if there are any.
    shadows: Option<Index>,
    /// Parts of the context that any policy reads.
    pub(super) reads: ContextUsage,
}

/// Decision on one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub allowed: bool,
    /// The policies that decided, by file and line: the permits if it is allowed, the forbids if it
    /// is refused. Empty if no policy permits it.
    pub rules: Vec<Rule>,
    /// Revision of the set that decided.
    pub revision: Revision,
    /// Failures. A request with any failure is refused.
    pub errors: Vec<Failure>,
    /// The policies in shadow mode that would reverse the decision: forbids of an allowed request,
    /// permits of a request that no policy permits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<Shadow>,
}

/// Policy in shadow mode that would reverse the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shadow {
    pub rule: Rule,
    /// The failure of the policy, if it would refuse by failing.
    pub problem: Option<String>,
}

/// Policy that failed, or request that could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The policy that failed.
    pub rule: Option<Rule>,
    /// Description of the failure, without any content of the message.
    pub problem: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "policy `{}` failed: {}", rule.id, self.problem),
            None => f.write_str(&self.problem),
        }
    }
}

impl Outcome {
    /// The reason of the decision, for the operator.
    pub fn explain(&self) -> String {
        let list = |rules: &[Rule]| {
            let ids: Vec<_> = rules.iter().map(|rule| format!("`{}`", rule.id)).collect();
            ids.join(", ")
        };
        if !self.errors.is_empty() {
            let errors: Vec<_> = self.errors.iter().map(Failure::to_string).collect();
            return errors.join("; ");
        }
        match (self.allowed, self.rules.is_empty()) {
            (true, _) => format!("permitted by {}", list(&self.rules)),
            (false, false) => format!("forbidden by {}", list(&self.rules)),
            (false, true) => "no policy permits it".to_owned(),
        }
    }

    /// Whether it permits an action of the proxy itself, for which nobody can give approval.
    pub fn permits_alone(&self) -> bool {
        self.allowed && !self.rules.iter().any(|rule| rule.obligations.approve.is_some())
    }

    /// The reason of a decision on an action of the proxy itself, for the operator.
    pub fn explain_alone(&self) -> String {
        match self.allowed && !self.permits_alone() {
            true => "`@approve` cannot be met where the proxy acts of itself".to_owned(),
            false => self.explain(),
        }
    }
}

/// State of the engine.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Revision of the set in use.
    pub revision: Revision,
    /// Number of its policies.
    pub policies: usize,
    /// The signed bundle that contains it, if it is from a bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Origin>,
    /// Ids of the policies with `@keep`, for which the audit log keeps bodies.
    pub keeping: Vec<String>,
    /// Warnings about the set.
    pub warnings: Vec<Finding>,
    /// Why the present files are not in use, if the last reload failed.
    pub last_error: Option<Diagnostics>,
}

impl Engine {
    /// Loads files and folders, relative to `base`. From a folder, its `*.cedar` and `*.tools.json`
    /// files are read, sorted; subfolders are not. An empty set is valid: it refuses everything.
    ///
    /// # Errors
    /// Every finding of every file, if any finding is an error.
    pub fn load(paths: &[PathBuf], base: &Path) -> Result<Self, Diagnostics> {
        Self::open(Source::Paths(paths.to_vec()), base)
    }

    /// Loads from a source, relative to `base`.
    ///
    /// # Errors
    /// As [`Engine::load`], or if a bundle cannot be verified.
    pub fn open(source: Source, base: &Path) -> Result<Self, Diagnostics> {
        let broken =
            |problem: String| Diagnostics::new(vec![Finding::error("policy-schema", problem)]);
        let plain = Arc::new(SchemaContext::new(Typed::default()).map_err(broken)?);
        let loaded = load::load(&source, base, &plain)?;
        let (status, _) = watch::channel(Status::of(&loaded));
        Ok(Self {
            source,
            base: base.to_owned(),
            in_force: AtomicBool::new(false),
            current: ArcSwap::from_pointee(Set::new(loaded, 1)),
            plain,
            reloading: Mutex::new(()),
            status,
            listener: Mutex::default(),
        })
    }

    /// Puts this set and all later ones in force for a running proxy: from now on, a bundle older
    /// than one that was in force is rejected.
    ///
    /// # Errors
    /// If the version of the bundle cannot be stored. The set must not decide then.
    pub fn enforce(&self) -> Result<(), Diagnostics> {
        let _one_at_a_time = self.reloading.lock();
        let bundle = self.status.borrow().bundle.clone();
        self.remember(bundle.as_ref())?;
        self.in_force.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn remember(&self, origin: Option<&Origin>) -> Result<(), Diagnostics> {
        match (self.source.bundle(), origin) {
            (Some(bundle), Some(origin)) => {
                bundle.remember(origin).map_err(|finding| Diagnostics::new(vec![finding]))
            }
            _ => Ok(()),
        }
    }

    /// Reads the files. If the engine is in force, also stores the version of the bundle.
    fn load_files(&self) -> Result<Loaded, Diagnostics> {
        let loaded = load::load(&self.source, &self.base, &self.plain)?;
        if self.in_force.load(Ordering::Relaxed) {
            self.remember(loaded.bundle.as_ref())?;
        }
        Ok(loaded)
    }

    /// Reads the files again. The new set is used as a whole if it is valid, and not at all
    /// otherwise. [`Engine::status`] has the result in both cases. Blocks while too many reloads
    /// are unread.
    ///
    /// # Errors
    /// Every finding of every file, if any finding is an error.
    pub fn reload(&self) -> Result<Revision, Diagnostics> {
        let _one_at_a_time = self.reloading.lock();
        match self.load_files() {
            Ok(loaded) => {
                let status = Status::of(&loaded);
                // Sent first, so that nobody sees a decision of an unknown set.
                self.notify(Reload::Taken(status.clone()));
                let revision = loaded.revision;
                // If the set is unchanged, its cached answers are kept.
                if revision != self.revision() {
                    let generation = self.generation() + 1;
                    self.current.store(Arc::new(Set::new(loaded, generation)));
                }
                self.status.send_replace(status);
                Ok(revision)
            }
            Err(diagnostics) => {
                self.notify(Reload::Rejected(diagnostics.clone()));
                self.status.send_modify(|status| status.last_error = Some(diagnostics.clone()));
                Err(diagnostics)
            }
        }
    }

    fn notify(&self, reload: Reload) {
        let listener = self.listener.lock().clone();
        if let Some(listener) = listener
            && listener.blocking_send(reload).is_err()
        {
            // The receiver is closed.
            *self.listener.lock() = None;
        }
    }

    /// Receives later reloads, for one receiver. A set is sent before its first decision.
    pub fn reloads(&self) -> mpsc::Receiver<Reload> {
        let (sender, reloads) = mpsc::channel(RELOADS);
        *self.listener.lock() = Some(sender);
        reloads
    }

    /// The status, with a notification of each change: a reload, valid or not.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Revision of the set in use.
    pub fn revision(&self) -> Revision {
        self.current.load().loaded.revision
    }

    /// Number of the set in use, among all that were in use. Unlike a revision, a generation never
    /// comes back.
    pub fn generation(&self) -> u64 {
        self.current.load().generation
    }

    /// Warnings about the set in use, given the known servers, clients and tools: policies that
    /// have no effect, contradict each other, match nobody, or match everybody and everything.
    pub fn analyse(&self, inventory: &Inventory) -> Vec<Finding> {
        let set = self.current.load();
        let mut findings = analysis::findings(&set.loaded, inventory);
        if let Some(servers) = &inventory.servers {
            findings.extend(set.loaded.misspelled_servers(&servers.iter().collect::<Vec<_>>()));
        }
        findings.sort_by_key(Finding::order);
        once_each(findings)
    }

    /// The servers that policies name and the inventory lacks, except misspelled ones, which are
    /// findings. Policies about them have no effect.
    pub fn absent_servers(&self, inventory: &Inventory) -> BTreeSet<String> {
        let Some(servers) = &inventory.servers else { return BTreeSet::new() };
        let servers: Vec<_> = servers.iter().collect();
        self.current.load().loaded.absent_servers(&servers)
    }

    /// The policies of the set in use, by file and line.
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules: Vec<_> = self.current.load().loaded.rules.values().cloned().collect();
        rules.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        rules
    }

    /// The policies of the set in use with their texts, by file and line.
    pub fn texts(&self) -> Vec<(Rule, String)> {
        let set = self.current.load();
        let text = |rule: &Rule| {
            let span = set.loaded.spans.get(&PolicyId::new(&rule.id))?;
            span.file.text.get(span.start..span.start + span.length)
        };
        let rules = self.rules().into_iter();
        rules.filter_map(|rule| text(&rule).map(str::to_owned).map(|text| (rule, text))).collect()
    }

    /// A finding of the lowest severity that shows the text of a policy.
    pub fn show(
        &self,
        id: &str,
        code: &'static str,
        message: &str,
        label: &str,
    ) -> Option<Finding> {
        let set = self.current.load();
        let span = set.loaded.spans.get(&PolicyId::new(id))?;
        let finding = Finding::error(code, message).advice();
        Some(finding.at(&span.file, span.start, span.length, label))
    }

    /// The set in use.
    pub(super) fn current_set(&self) -> Arc<Set> {
        self.current.load_full()
    }

    /// The entities that policies name, by type and id.
    pub fn literals(&self) -> BTreeSet<(String, String)> {
        let set = self.current.load();
        let policies = set.loaded.policies.policies();
        let literals = policies.flat_map(|policy| policy.entity_literals());
        let named = |literal: EntityUid| {
            (literal.type_name().basename().to_owned(), literal.id().unescaped().to_owned())
        };
        literals.map(named).collect()
    }

    /// Paths of the policies, joined to the base.
    pub fn sources(&self) -> Vec<PathBuf> {
        self.source.sources(&self.base)
    }

    /// Decides a request. It is allowed if a policy permits it, no policy forbids it and no policy
    /// fails. Policies in shadow mode have no effect.
    pub fn decide(&self, request: &Request<'_>) -> Outcome {
        let set = self.current.load();
        let Loaded { rules, revision, .. } = &set.loaded;
        let answer = match set.index.decide(set.terms(), request) {
            Ok(answer) => answer,
            Err(error) => {
                return Outcome {
                    allowed: false,
                    rules: Vec::new(),
                    revision: *revision,
                    errors: vec![Failure { rule: None, problem: error.to_string() }],
                    shadows: Vec::new(),
                };
            }
        };
        let rule = |id: &PolicyId| rules.get(id).cloned();
        let span = |rule: &Rule| (rule.file.clone(), rule.line);
        let permitted = answer.permitted();
        let determining = if permitted { &answer.permits } else { &answer.forbids };
        let mut deciding: Vec<_> = determining.iter().filter_map(|id| rule(id)).collect();
        // Cedar skips a policy that fails. A skipped forbid has no effect, so any failure refuses.
        let failure = |(id, problem): (&PolicyId, &str)| Failure {
            rule: rule(id),
            problem: problem.to_owned(),
        };
        let mut errors: Vec<_> = answer.failures.into_iter().map(failure).collect();
        errors.sort_by_cached_key(|error| error.rule.as_ref().map(span));
        if permitted && !errors.is_empty() {
            // The failures decided, not the permits.
            deciding = errors.iter().filter_map(|error| error.rule.clone()).collect();
        }
        deciding.sort_by_cached_key(span);
        let allowed = permitted && errors.is_empty();
        // The only cause of the refusal is that no policy permits it.
        let wanting = !allowed && deciding.is_empty() && errors.is_empty();
        let shadows = match &set.shadows {
            Some(index) if allowed || wanting => set.shadows(index, request, allowed),
            _ => Vec::new(),
        };
        Outcome { allowed, rules: deciding, revision: *revision, errors, shadows }
    }

    /// Whether a permit has a scope that matches the request, whatever its conditions are.
    pub(super) fn has_permit(
        &self,
        subject: Subject<'_>,
        action: Action,
        resource: Resource<'_>,
    ) -> bool {
        let set = self.current.load();
        let about = About { subject, action, resource, own: false };
        let is_permit = |id: &PolicyId| {
            let policy = set.loaded.policies.policy(id);
            policy.is_some_and(|policy| policy.effect() == Effect::Permit)
        };
        set.frame(about).is_ok_and(|frame| set.met(about, &frame).any(is_permit))
    }

    /// Decides on an action of the proxy itself. Findings of shadow mode go to the log, since only
    /// records of messages can hold them.
    pub fn decide_own(
        &self,
        subject: Subject<'_>,
        action: Action,
        resource: Resource<'_>,
    ) -> Outcome {
        self.decide_own_at(subject, action, resource, jiff::Timestamp::now())
    }

    /// As [`Engine::decide_own`], at another time.
    pub(super) fn decide_own_at(
        &self,
        subject: Subject<'_>,
        action: Action,
        resource: Resource<'_>,
        at: jiff::Timestamp,
    ) -> Outcome {
        let outcome = self.decide(&Request {
            subject,
            action,
            resource,
            args: None,
            written: b"",
            circumstances: Circumstances::own(at),
        });
        for Shadow { rule, problem } in &outcome.shadows {
            let would = if outcome.allowed { "refuse" } else { "permit" };
            let (action, policy) = (action.as_str(), &rule.id);
            tracing::info!(action, policy, problem, "a policy in shadow would {would} it");
        }
        outcome
    }

    /// Whether the subject could be allowed to do this to the resource in some circumstances, with
    /// some arguments. Decides what a list shows. Always true if [`Engine::decide`] allows it.
    pub fn could_allow(
        &self,
        subject: &Subject<'_>,
        action: Action,
        resource: &Resource<'_>,
    ) -> bool {
        self.view(*subject).could_allow(action, resource)
    }

    /// The same check for many requests of one subject.
    pub fn view<'a>(&'a self, subject: Subject<'a>) -> View<'a> {
        View { engine: self, subject, cached: CachedSubject::of(&subject) }
    }
}

impl View<'_> {
    /// [`Engine::could_allow`] with the set in use at the time of the call.
    pub fn could_allow(&self, action: Action, resource: &Resource<'_>) -> bool {
        let about = About { subject: self.subject, action, resource: *resource, own: false };
        let set = self.engine.current.load();
        let possible = set.index.could_allow(set.terms(), self.cached, about);
        possible.unwrap_or_else(|error| {
            match error {
                // The server causes this, and could fill the log with it.
                RequestError::Unshowable(_) => {
                    tracing::debug!(action = action.as_str(), "not shown: {error}");
                }
                RequestError::InputMismatch(_) | RequestError::SchemaMismatch(_) => {
                    tracing::error!(action = action.as_str(), "not shown: {error}");
                }
            }
            false
        })
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("source", &self.source)
            .field("base", &self.base)
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Set {
    fn new(loaded: Loaded, generation: u64) -> Self {
        let vocabulary = &loaded.ground.vocabulary;
        let (shadows, policies) = loaded.policies.policies().partition::<Vec<_>, _>(|policy| {
            loaded.rules.get(policy.id()).is_some_and(|rule| rule.obligations.shadow)
        });
        let index = Index::new(&policies, vocabulary);
        let shadows = (!shadows.is_empty()).then(|| Index::new(&shadows, vocabulary));
        let reads = index.reads() | shadows.as_ref().map(Index::reads).unwrap_or_default();
        Self { loaded, generation, index, shadows, reads }
    }

    fn terms(&self) -> Terms<'_> {
        self.loaded.ground.terms()
    }

    /// The part of a request that does not depend on the call. If `about.own` is set, the action is
    /// the tool's own one.
    pub(super) fn frame(&self, about: About<'_>) -> Result<Frame, RequestError> {
        let Terms { schema, vocabulary } = self.terms();
        vocabulary.frame(about, schema)
    }

    /// The same request under the tool's own action, if it has one.
    pub(super) fn own<'a>(&self, about: About<'a>) -> Option<About<'a>> {
        about.own(self.terms().vocabulary)
    }

    /// The policies in force whose scopes match the request.
    pub(super) fn met(&self, about: About<'_>, frame: &Frame) -> impl Iterator<Item = &PolicyId> {
        self.index.met(self.terms().vocabulary, about, frame)
    }

    /// The request in Cedar's form, with the circumstances and arguments that `reads` lists.
    pub(super) fn put(
        &self,
        frame: &Frame,
        request: &Request<'_>,
        reads: ContextUsage,
    ) -> Result<(cedar_policy::Request, Entities), RequestError> {
        let uids = frame.uids().clone();
        let vocabulary = self.terms().vocabulary;
        let (uids, entities) = (context::uids(uids), Some(frame.entities().as_ref()));
        let (question, entities) =
            vocabulary.question(uids, frame.own(), entities, request, reads)?;
        Ok((question.into(), entities.into()))
    }

    /// Whether arguments that do not fit the tool's type are refused, because a policy that may
    /// apply is about its own action or reads the typed input.
    pub(super) fn needs_input(&self, about: About<'_>) -> bool {
        let reads = || self.index.context_usage(self.terms(), about);
        about.own && reads().is_ok_and(|reads| reads.has(ContextUsage::INPUT))
    }

    /// Checks that the policies can decide on these arguments: they fit the tool's type and have
    /// unambiguous keys, if a policy depends on that.
    ///
    /// # Errors
    /// [`RequestError`], if they do not.
    pub(super) fn fit(&self, about: About<'_>, request: &Request<'_>) -> Result<(), RequestError> {
        if self.needs_input(about) {
            self.terms().vocabulary.input(request)?;
        }
        self.index.check_keys(self.terms(), about, request.args)
    }

    /// Whether arguments that cannot be represented are refused, because a policy that may apply to
    /// this request reads arguments.
    pub(super) fn reads_arguments(&self, request: &Request<'_>) -> bool {
        let reads = self.index.context_usage(self.terms(), About::of(request));
        reads.is_ok_and(|reads| reads.has(ContextUsage::ARGUMENTS))
    }

    /// The policies in shadow mode that would reverse a decision.
    fn shadows(&self, index: &Index, request: &Request<'_>, allowed: bool) -> Vec<Shadow> {
        let rules = &self.loaded.rules;
        let shadow = |id: &PolicyId, problem: Option<&str>| {
            Some(Shadow { rule: rules.get(id)?.clone(), problem: problem.map(str::to_owned) })
        };
        let mut shadows: Vec<_> = match index.decide(self.terms(), request) {
            Ok(answer) if allowed => {
                let forbids = answer.forbids.iter().filter_map(|id| shadow(id, None));
                let failures =
                    answer.failures.iter().filter_map(|(id, problem)| shadow(id, Some(problem)));
                forbids.chain(failures).collect()
            }
            Ok(answer) if answer.permitted() && answer.failures.is_empty() => {
                answer.permits.iter().filter_map(|id| shadow(id, None)).collect()
            }
            Ok(_) => Vec::new(),
            // In force, these policies would refuse the request without being evaluated.
            Err(error) if allowed => {
                let rule = Rule::named("@mode");
                vec![Shadow { rule, problem: Some(error.to_string()) }]
            }
            Err(_) => Vec::new(),
        };
        shadows.sort_by_cached_key(|shadow| (shadow.rule.file.clone(), shadow.rule.line));
        shadows
    }
}

impl Status {
    fn of(loaded: &Loaded) -> Self {
        Self {
            revision: loaded.revision,
            policies: loaded.rules.len(),
            bundle: loaded.bundle.clone(),
            keeping: loaded.keeping(),
            warnings: loaded.warnings.clone(),
            last_error: None,
        }
    }
}
/// Codes of findings about a name, which a set can have in many places.
const ABOUT_NAMES: [&str; 3] =
    ["policy-empty-group", "policy-unknown-client", "policy-unknown-server"];
/// Maximum number of further places in one finding.
const MORE_PLACES: usize = 4;

/// Joins equal findings about one name: the first has the places of the others.
fn once_each(findings: Vec<Finding>) -> Vec<Finding> {
    let mut joined: Vec<(Finding, Vec<String>)> = Vec::new();
    for finding in findings {
        let is_about_name = ABOUT_NAMES.contains(&finding.code);
        let same = |first: &Finding| {
            is_about_name && first.code == finding.code && first.to_string() == finding.to_string()
        };
        match joined.iter_mut().find(|(first, _)| same(first)) {
            Some((_, places)) => places.extend(finding.place()),
            None => joined.push((finding, Vec::new())),
        }
    }
    let joined = joined.into_iter().map(|(finding, places)| {
        if places.is_empty() {
            return finding;
        }
        let shown = places.iter().take(MORE_PLACES).map(String::as_str).collect::<Vec<_>>();
        let rest = if places.len() > shown.len() { ", …" } else { "" };
        let also = format!("also at {}{rest} ({} in all)", shown.join(", "), places.len() + 1);
        finding.also(&also)
    });
    joined.collect()
}
