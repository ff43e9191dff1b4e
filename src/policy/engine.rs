//! The engine: one validated set of policies at a time, and the decisions it makes.

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
    analysis::{self, Known},
    bundle::Origin,
    cache::Asker,
    conditions::ContextUsage,
    context,
    diagnostics::{Diagnostics, Finding},
    entities::{Frame, Unaskable},
    index::{About, Index, Terms},
    inspect::Inspector,
    load::{self, Loaded, Revision},
    request::{Action, Circumstances, Request, Resource, Subject},
    schema_context::SchemaContext,
    source::Source,
    typed::Typed,
};
use portcullis_protocol::refusal::Rule;

/// Decides. Shared by all; a reload swaps the set for later decisions and leaves those under way.
pub struct Engine {
    source: Source,
    base: PathBuf,
    /// Whether it decides for a running proxy, so that what it takes is kept in mind.
    in_force: AtomicBool,
    /// Of sets without typed tools.
    plain: Arc<SchemaContext>,
    current: ArcSwap<Set>,
    /// Held while the files are read, so that two reloads do not overtake each other.
    reloading: Mutex<()>,
    status: watch::Sender<Status>,
    /// Who is told of every reload.
    told: Mutex<Option<mpsc::Sender<Reload>>>,
}

/// What one subject could be allowed.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    engine: &'a Engine,
    subject: Subject<'a>,
    asker: Asker<'a>,
}

/// What came of reading the files again.
#[derive(Debug, Clone)]
pub enum Reload {
    /// They are used from now on.
    Taken(Status),
    /// They are not used.
    Rejected(Diagnostics),
}

/// Reloads that may wait to be heard of; the next one waits for those.
const RELOADS: usize = 16;

/// A set in use. What is kept of its answers goes with it.
pub(super) struct Set {
    pub(super) loaded: Loaded,
    /// The policies in force.
    index: Index,
    /// Those in shadow, where there are any.
    shadows: Option<Index>,
    /// What any policy looks at.
    pub(super) reads: ContextUsage,
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub allowed: bool,
    /// The policies that decided, by file and line: the permits of an allowance, the forbids of a
    /// refusal. None where nothing permitted it.
    pub rules: Vec<Rule>,
    /// The set that decided.
    pub revision: Revision,
    /// What failed. With any failure nothing is allowed.
    pub errors: Vec<Failure>,
    /// The policies in shadow that would have turned it round: that would refuse what is allowed,
    /// or permit what is refused for want of a permit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<Shadow>,
}

/// A policy in shadow that would have decided otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shadow {
    pub rule: Rule,
    /// What it failed of, where that is how it would refuse.
    pub problem: Option<String>,
}

/// A policy that could not be evaluated, or a question that could not be put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The policy that failed.
    pub rule: Option<Rule>,
    /// What happened. Holds nothing of the message.
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
    /// Why, in words for the operator.
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

    /// Whether it permits what the proxy does of itself: nobody can be asked to approve that.
    pub fn permits_alone(&self) -> bool {
        self.allowed && !self.rules.iter().any(|rule| rule.obligations.approve.is_some())
    }

    /// Why, in words for the operator, of what the proxy does of itself.
    pub fn explain_alone(&self) -> String {
        match self.allowed && !self.permits_alone() {
            true => "`@approve` cannot be met where the proxy acts of itself".to_owned(),
            false => self.explain(),
        }
    }
}

/// What the engine works with now.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The set in use.
    pub revision: Revision,
    /// How many policies it has.
    pub policies: usize,
    /// The signed bundle that it is from, where it is from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<Origin>,
    /// Those of them that have the audit log keep bodies, by `@keep`.
    pub keeping: Vec<String>,
    /// What looks wrong in it.
    pub warnings: Vec<Finding>,
    /// Why the files as they are now are not in use, where the last reload failed.
    pub last_error: Option<Diagnostics>,
}

impl Engine {
    /// Loads files and folders (whose `*.cedar` and `*.tools.json` files are taken, sorted; not those
    /// in folders within), relative to `base`. No policies are a legal set: it refuses everything.
    ///
    /// # Errors
    /// Every finding of every file, where any is an error.
    pub fn load(paths: &[PathBuf], base: &Path) -> Result<Self, Diagnostics> {
        Self::open(Source::Paths(paths.to_vec()), base)
    }

    /// Loads from a source, relative to `base`.
    ///
    /// # Errors
    /// As [`Engine::load`]; of a bundle also where it does not hold.
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
            current: ArcSwap::from_pointee(Set::new(loaded)),
            plain,
            reloading: Mutex::new(()),
            status,
            told: Mutex::default(),
        })
    }

    /// Says that the set in use decides from now on for a running proxy, and so will those that
    /// follow: no bundle that is older than one that was in force is taken any more.
    ///
    /// # Errors
    /// Where that can't be kept in mind: then the set must not decide.
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

    /// Reads the files, and keeps in mind what they are where they will be in force.
    fn read_again(&self) -> Result<Loaded, Diagnostics> {
        let loaded = load::load(&self.source, &self.base, &self.plain)?;
        if self.in_force.load(Ordering::Relaxed) {
            self.remember(loaded.bundle.as_ref())?;
        }
        Ok(loaded)
    }

    /// Reads the files again. The new set is used as a whole, or, where it does not validate, not
    /// at all. Either way, [`Engine::status`] has the outcome. Blocks where too many reloads were
    /// not heard of yet.
    ///
    /// # Errors
    /// Every finding of every file, where any is an error.
    pub fn reload(&self) -> Result<Revision, Diagnostics> {
        let _one_at_a_time = self.reloading.lock();
        match self.read_again() {
            Ok(loaded) => {
                let status = Status::of(&loaded);
                // Before it decides: whoever meets its decisions can wait until it is known.
                self.tell(Reload::Taken(status.clone()));
                let revision = loaded.revision;
                // The same set keeps what is kept of its answers.
                if revision != self.revision() {
                    self.current.store(Arc::new(Set::new(loaded)));
                }
                self.status.send_replace(status);
                Ok(revision)
            }
            Err(diagnostics) => {
                self.tell(Reload::Rejected(diagnostics.clone()));
                self.status.send_modify(|status| status.last_error = Some(diagnostics.clone()));
                Err(diagnostics)
            }
        }
    }

    fn tell(&self, reload: Reload) {
        let told = self.told.lock().clone();
        if let Some(told) = told
            && told.blocking_send(reload).is_err()
        {
            // Nobody listens any more.
            *self.told.lock() = None;
        }
    }

    /// Every reload from now on, for one listener. A set is told of before it decides anything.
    pub fn reloads(&self) -> mpsc::Receiver<Reload> {
        let (sender, reloads) = mpsc::channel(RELOADS);
        *self.told.lock() = Some(sender);
        reloads
    }

    /// The status, and word of each change to it: a reload, good or bad.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The set in use.
    pub fn revision(&self) -> Revision {
        self.current.load().loaded.revision
    }

    /// Warnings of what looks wrong in the set in use, given what there is: policies that decide
    /// nothing, that contradict each other, that concern nobody, or everybody and everything.
    pub fn analyse(&self, known: &Known) -> Vec<Finding> {
        let set = self.current.load();
        let mut findings = analysis::findings(&set.loaded, known);
        if let Some(servers) = &known.servers {
            findings.extend(set.loaded.unknown_servers(&servers.iter().collect::<Vec<_>>()));
        }
        findings.sort_by_key(Finding::order);
        findings
    }

    /// The policies of the set in use, by file and line.
    pub fn rules(&self) -> Vec<Rule> {
        let mut rules: Vec<_> = self.current.load().loaded.rules.values().cloned().collect();
        rules.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        rules
    }

    /// Advice that shows the text of a policy.
    pub fn show(
        &self,
        id: &str,
        code: &'static str,
        message: &str,
        label: &str,
    ) -> Option<Finding> {
        let set = self.current.load();
        let place = set.loaded.places.get(&PolicyId::new(id))?;
        let finding = Finding::error(code, message).advice();
        Some(finding.at(&place.file, place.start, place.length, label))
    }

    /// The set in use, looked into.
    pub fn inspect(&self) -> Inspector {
        Inspector::new(self.current.load_full())
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

    /// Where the policies are: the paths as they were given, joined to the base.
    pub fn sources(&self) -> Vec<PathBuf> {
        self.source.sources(&self.base)
    }

    /// Decides. Allowed is what a policy permits, none forbids and none fails on. Policies in
    /// shadow have no say.
    pub fn decide(&self, request: &Request<'_>) -> Outcome {
        let set = self.current.load();
        let Loaded { rules, revision, .. } = &set.loaded;
        let answer = match set.index.decide(set.terms(), request) {
            Ok(answer) => answer,
            Err(unaskable) => {
                return Outcome {
                    allowed: false,
                    rules: Vec::new(),
                    revision: *revision,
                    errors: vec![Failure { rule: None, problem: unaskable.to_string() }],
                    shadows: Vec::new(),
                };
            }
        };
        let rule = |id: &PolicyId| rules.get(id).cloned();
        let place = |rule: &Rule| (rule.file.clone(), rule.line);
        let permitted = answer.permitted();
        let determining = if permitted { &answer.permits } else { &answer.forbids };
        let mut deciding: Vec<_> = determining.iter().filter_map(|id| rule(id)).collect();
        // Cedar skips a policy that fails. A forbid that is skipped forbids nothing, so any
        // failure refuses.
        let failure = |(id, problem): (&PolicyId, &str)| Failure {
            rule: rule(id),
            problem: problem.to_owned(),
        };
        let mut errors: Vec<_> = answer.failures.into_iter().map(failure).collect();
        errors.sort_by_cached_key(|error| error.rule.as_ref().map(place));
        if permitted && !errors.is_empty() {
            // The permits did not decide: the failures did.
            deciding = errors.iter().filter_map(|error| error.rule.clone()).collect();
        }
        deciding.sort_by_cached_key(place);
        let allowed = permitted && errors.is_empty();
        // Refused for want of a permit, and of nothing else.
        let wanting = !allowed && deciding.is_empty() && errors.is_empty();
        let shadows = match &set.shadows {
            Some(index) if allowed || wanting => set.shadows(index, request, allowed),
            _ => Vec::new(),
        };
        Outcome { allowed, rules: deciding, revision: *revision, errors, shadows }
    }

    /// Whether there is a permit that is about this, whatever its conditions come to.
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

    /// Decides on what the proxy does of itself. What policies in shadow would have changed goes
    /// to the log: nothing of it is a message, which is where records have findings.
    pub fn decide_own(
        &self,
        subject: Subject<'_>,
        action: Action,
        resource: Resource<'_>,
    ) -> Outcome {
        let outcome = self.decide(&Request {
            subject,
            action,
            resource,
            args: None,
            written: b"",
            circumstances: Circumstances::own(jiff::Timestamp::now()),
        });
        for Shadow { rule, problem } in &outcome.shadows {
            let would = if outcome.allowed { "refuse" } else { "permit" };
            let (action, policy) = (action.as_str(), &rule.id);
            tracing::info!(action, policy, problem, "a policy in shadow would {would} it");
        }
        outcome
    }

    /// Whether the subject could be allowed to do this to the resource in some circumstances, with
    /// some arguments: what a list may show. Never says no to what [`Engine::decide`] allows.
    pub fn could_allow(
        &self,
        subject: &Subject<'_>,
        action: Action,
        resource: &Resource<'_>,
    ) -> bool {
        self.view(*subject).could_allow(action, resource)
    }

    /// The same for many questions of one subject.
    pub fn view<'a>(&'a self, subject: Subject<'a>) -> View<'a> {
        View { engine: self, subject, asker: Asker::of(&subject) }
    }
}

impl View<'_> {
    /// [`Engine::could_allow`], by the set that is in use now.
    pub fn could_allow(&self, action: Action, resource: &Resource<'_>) -> bool {
        let about = About { subject: self.subject, action, resource: *resource, own: false };
        let set = self.engine.current.load();
        let possible = set.index.could_allow(set.terms(), self.asker, about);
        possible.unwrap_or_else(|unaskable| {
            match unaskable {
                // That is the server's doing, which could fill the log with it.
                Unaskable::Unshowable(_) => {
                    tracing::debug!(action = action.as_str(), "not shown: {unaskable}");
                }
                Unaskable::Unfit(_) | Unaskable::Misfit(_) => {
                    tracing::error!(action = action.as_str(), "not shown: {unaskable}");
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
    fn new(loaded: Loaded) -> Self {
        let vocabulary = &loaded.ground.vocabulary;
        let (shadows, policies) = loaded.policies.policies().partition::<Vec<_>, _>(|policy| {
            loaded.rules.get(policy.id()).is_some_and(|rule| rule.obligations.shadow)
        });
        let index = Index::new(&policies, vocabulary);
        let shadows = (!shadows.is_empty()).then(|| Index::new(&shadows, vocabulary));
        let reads = index.reads() | shadows.as_ref().map(Index::reads).unwrap_or_default();
        Self { loaded, index, shadows, reads }
    }

    fn terms(&self) -> Terms<'_> {
        self.loaded.ground.terms()
    }

    /// What of a question does not depend on the call; under the tool's own action, where it has one
    /// and that is wanted.
    pub(super) fn frame(&self, about: About<'_>) -> Result<Frame, Unaskable> {
        let Terms { schema, vocabulary } = self.terms();
        vocabulary.frame(about, schema)
    }

    /// The same question under the tool's own action, where it has one.
    pub(super) fn own<'a>(&self, about: About<'a>) -> Option<About<'a>> {
        about.own(self.terms().vocabulary)
    }

    /// The policies in force whose scopes a question meets.
    pub(super) fn met(&self, about: About<'_>, frame: &Frame) -> impl Iterator<Item = &PolicyId> {
        self.index.met(self.terms().vocabulary, about, frame)
    }

    /// A question as Cedar takes it, with these of its circumstances and arguments.
    pub(super) fn put(
        &self,
        frame: &Frame,
        request: &Request<'_>,
        reads: ContextUsage,
    ) -> Result<(cedar_policy::Request, Entities), Unaskable> {
        let uids = frame.uids().clone();
        let vocabulary = self.terms().vocabulary;
        let (uids, entities) = (context::uids(uids), Some(frame.entities().as_ref()));
        let (question, entities) =
            vocabulary.question(uids, frame.own(), entities, request, reads)?;
        Ok((question.into(), entities.into()))
    }

    /// Whether arguments that are not of the tool's type are refused: whether a policy that may
    /// matter to it is about its own action, or looks at the typed input.
    pub(super) fn needs_input(&self, about: About<'_>) -> bool {
        let reads = || self.index.asked(self.terms(), about);
        about.own && reads().is_ok_and(|reads| reads.has(ContextUsage::INPUT))
    }

    /// Whether the policies can decide by these arguments: whether they are of the tool's type and
    /// have unambiguous keys, where that matters.
    ///
    /// # Errors
    /// Where they cannot.
    pub(super) fn fit(&self, about: About<'_>, request: &Request<'_>) -> Result<(), Unaskable> {
        if self.needs_input(about) {
            self.terms().vocabulary.input(request)?;
        }
        self.index.check_keys(self.terms(), about, request.args)
    }

    /// Whether arguments of this question that cannot be shown are refused: whether a policy that
    /// may matter to it looks at them.
    pub(super) fn reads_arguments(&self, request: &Request<'_>) -> bool {
        let reads = self.index.asked(self.terms(), About::of(request));
        reads.is_ok_and(|reads| reads.has(ContextUsage::ARGUMENTS))
    }

    /// The policies in shadow that would turn a decision round.
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
            // In force, they would have refused it without being asked.
            Err(unaskable) if allowed => {
                let rule = Rule::named("@mode");
                vec![Shadow { rule, problem: Some(unaskable.to_string()) }]
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
