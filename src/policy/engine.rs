//! The engine: one validated set of policies at a time, and the decisions it makes.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use cedar_policy::{
    AuthorizationError, Authorizer, Decision, Entities, EntityUid, EvaluationError, PolicyId,
    Schema,
};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use super::{
    SCHEMA,
    analysis::{self, Known},
    cache::{self, Kept, Key},
    diagnostics::{Diagnostics, Finding},
    entities::{Frame, Unaskable, Vocabulary},
    inspect::Inspector,
    load::{self, Loaded, Reads, Revision},
    request::{Action, Circumstances, Request, Resource, Subject},
};
use crate::refusal::Rule;

/// Decides. Shared by all; a reload swaps the set for later decisions and leaves those under way.
pub struct Engine {
    paths: Vec<PathBuf>,
    base: PathBuf,
    schema: Schema,
    vocabulary: Vocabulary,
    authorizer: Authorizer,
    frames: Kept<Arc<Frame>>,
    current: ArcSwap<Set>,
    /// Held while the files are read, so that two reloads do not overtake each other.
    reloading: Mutex<()>,
    status: watch::Sender<Status>,
    /// Who is told of every reload.
    told: Mutex<Option<mpsc::Sender<Reload>>>,
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
    visible: Kept<bool>,
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
}

/// What the engine works with now.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The set in use.
    pub revision: Revision,
    /// How many policies it has.
    pub policies: usize,
    /// Those of them that have the audit log keep bodies, by `@keep`.
    pub keeping: Vec<String>,
    /// What looks wrong in it.
    pub warnings: Vec<Finding>,
    /// Why the files as they are now are not in use, where the last reload failed.
    pub last_error: Option<Diagnostics>,
}

impl Engine {
    /// Loads files and folders (whose `*.cedar` files are taken, sorted; not those in folders
    /// within), relative to `base`. No policies are a legal set: it refuses everything.
    ///
    /// # Errors
    /// Every finding of every file, where any is an error.
    pub fn load(paths: &[PathBuf], base: &Path) -> Result<Self, Diagnostics> {
        let broken =
            |problem: String| Diagnostics::new(vec![Finding::error("policy-schema", problem)]);
        let (schema, _) =
            Schema::from_cedarschema_str(SCHEMA).map_err(|e| broken(e.to_string()))?;
        let vocabulary = Vocabulary::new(&schema).map_err(|e| broken(e.to_string()))?;
        let loaded = load::load(paths, base, &schema)?;
        let (status, _) = watch::channel(Status::of(&loaded));
        Ok(Self {
            paths: paths.to_vec(),
            base: base.to_owned(),
            schema,
            vocabulary,
            authorizer: Authorizer::new(),
            frames: cache::empty(),
            current: ArcSwap::from_pointee(Set::new(loaded)),
            reloading: Mutex::new(()),
            status,
            told: Mutex::default(),
        })
    }

    /// Reads the files again. The new set is used as a whole, or, where it does not validate, not
    /// at all. Either way, [`Engine::status`] has the outcome. Blocks where too many reloads were
    /// not heard of yet.
    ///
    /// # Errors
    /// Every finding of every file, where any is an error.
    pub fn reload(&self) -> Result<Revision, Diagnostics> {
        let _one_at_a_time = self.reloading.lock();
        match load::load(&self.paths, &self.base, &self.schema) {
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
        let mut findings = analysis::findings(&set.loaded, &self.schema, known);
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
    pub(super) fn show(
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
    pub fn inspect(&self) -> Inspector<'_> {
        Inspector::new(self, self.current.load_full())
    }

    /// The entities that policies name, by type and id.
    pub(super) fn literals(&self) -> BTreeSet<(String, String)> {
        let set = self.current.load();
        let policies = set.loaded.policies.policies();
        let literals = policies.flat_map(|policy| policy.entity_literals());
        let named = |literal: EntityUid| {
            (literal.type_name().basename().to_owned(), literal.id().unescaped().to_owned())
        };
        literals.map(named).collect()
    }

    /// A question as Cedar takes it, with what policies look at.
    pub(super) fn put(
        &self,
        frame: &Frame,
        request: &Request<'_>,
        reads: Reads,
    ) -> Result<(cedar_policy::Request, Entities), Unaskable> {
        let (question, entities) = self.vocabulary.question(frame, request, reads)?;
        Ok((question, entities.into_owned()))
    }

    /// Where the policies are: the paths as they were given, joined to the base.
    pub fn sources(&self) -> Vec<PathBuf> {
        self.paths.iter().map(|path| self.base.join(path)).collect()
    }

    /// Decides. Allowed is what a policy permits, none forbids and none fails on.
    pub fn decide(&self, request: &Request<'_>) -> Outcome {
        let set = self.current.load();
        let Loaded { policies, rules, revision, reads, .. } = &set.loaded;
        let unasked = |unaskable: Unaskable| Outcome {
            allowed: false,
            rules: Vec::new(),
            revision: *revision,
            errors: vec![Failure { rule: None, problem: unaskable.to_string() }],
        };
        let frame = match self.frame(request) {
            Ok(frame) => frame,
            Err(unaskable) => return unasked(unaskable),
        };
        let (question, entities) = match self.vocabulary.question(&frame, request, *reads) {
            Ok(question) => question,
            Err(unaskable) => return unasked(unaskable),
        };
        let response = self.authorizer.is_authorized(&question, policies, &entities);
        let rule = |id: &PolicyId| rules.get(id).cloned();
        // Cedar skips a policy that fails. A forbid that is skipped forbids nothing, so any
        // failure refuses.
        let mut errors: Vec<_> = response
            .diagnostics()
            .errors()
            .map(|AuthorizationError::PolicyEvaluationError(error)| Failure {
                rule: rule(error.policy_id()),
                problem: problem(error.inner()).to_owned(),
            })
            .collect();
        let place = |rule: &Rule| (rule.file.clone(), rule.line);
        errors.sort_by_key(|error| error.rule.as_ref().map(place));
        let permitted = response.decision() == Decision::Allow;
        let allowed = permitted && errors.is_empty();
        let mut deciding: Vec<_> = if permitted && !allowed {
            // The permits did not decide: the failures did.
            errors.iter().filter_map(|error| error.rule.clone()).collect()
        } else {
            response.diagnostics().reason().filter_map(rule).collect()
        };
        deciding.sort_by_key(place);
        Outcome { allowed, rules: deciding, revision: *revision, errors }
    }

    pub(super) fn frame(&self, request: &Request<'_>) -> Result<Arc<Frame>, Unaskable> {
        let Request { subject, action, resource, .. } = request;
        let key = Key::of(subject, *action, resource);
        if let Some(frame) = self.frames.get(&key) {
            return Ok(frame);
        }
        let frame = Arc::new(self.vocabulary.frame(subject, *action, resource, &self.schema)?);
        self.frames.insert(key, Arc::clone(&frame));
        Ok(frame)
    }

    /// Decides on what the proxy does of itself.
    pub fn decide_own(
        &self,
        subject: Subject<'_>,
        action: Action,
        resource: Resource<'_>,
    ) -> Outcome {
        self.decide(&Request {
            subject,
            action,
            resource,
            args: None,
            written: b"",
            circumstances: Circumstances::own(jiff::Timestamp::now()),
        })
    }

    /// Whether the subject could be allowed to do this to the resource in some circumstances, with
    /// some arguments: what a list may show. Never says no to what [`Engine::decide`] allows.
    pub fn could_allow(
        &self,
        subject: &Subject<'_>,
        action: Action,
        resource: &Resource<'_>,
    ) -> bool {
        let set = self.current.load();
        let key = Key::of(subject, action, resource);
        if let Some(visible) = set.visible.get(&key) {
            return visible;
        }
        let visible = self.could_allow_by(&set.loaded, subject, action, resource);
        set.visible.insert(key, visible);
        visible
    }

    fn could_allow_by(
        &self,
        loaded: &Loaded,
        subject: &Subject<'_>,
        action: Action,
        resource: &Resource<'_>,
    ) -> bool {
        let (question, entities) =
            match self.vocabulary.open_question(subject, action, resource, &self.schema) {
                Ok(question) => question,
                Err(unaskable) => {
                    tracing::error!(action = action.as_str(), "not shown: {unaskable}");
                    return false;
                }
            };
        match loaded.policies.tpe(&question, &entities, &self.schema) {
            // What fails in all circumstances is refused in all.
            Ok(response) => {
                response.decision() != Some(Decision::Deny)
                    && response.error_forbids().next().is_none()
                    && response.error_permits().next().is_none()
            }
            Err(error) => {
                tracing::error!(action = action.as_str(), "not shown: {error}");
                false
            }
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("paths", &self.paths)
            .field("base", &self.base)
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

impl Set {
    fn new(loaded: Loaded) -> Self {
        Self { loaded, visible: cache::empty() }
    }
}

impl Status {
    fn of(loaded: &Loaded) -> Self {
        Self {
            revision: loaded.revision,
            policies: loaded.rules.len(),
            keeping: loaded.keeping(),
            warnings: loaded.warnings.clone(),
            last_error: None,
        }
    }
}

/// What went wrong, without any value: Cedar's own texts quote what they were given, and that may
/// be an argument.
fn problem(error: &EvaluationError) -> &'static str {
    match error {
        EvaluationError::EntityDoesNotExist(_) => "it asks for an entity that is not there",
        EvaluationError::EntityAttrDoesNotExist(_) | EvaluationError::RecordAttrDoesNotExist(_) => {
            "it asks for an attribute or tag that is not there"
        }
        EvaluationError::TypeError(_) => "a value is not of the type it needs",
        EvaluationError::IntegerOverflow(_) => "an integer overflows",
        EvaluationError::FailedExtensionFunctionExecution(_) => {
            "a value cannot be read as the decimal, address, datetime or duration it should be"
        }
        EvaluationError::RecursionLimit(_) => "it is nested too deeply",
        _ => "it cannot be evaluated",
    }
}
