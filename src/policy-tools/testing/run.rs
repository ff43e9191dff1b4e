//! Finds and runs case files, and reports the results.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use portcullis_policy::{Circumstances, File, Finding, Request, Target};
use portcullis_policy::{Engine, Failure, Outcome, is_tools_file};

use super::{
    file::{Document, Expect},
    query::{Query, Sides, queries},
    yaml::{is_case_file, read},
};
use portcullis_protocol::{
    exchange::{Revision, Transport},
    names::Group,
    obligations::Keep,
    refusal::Rule,
};

/// Default time of a case: a Monday noon.
pub const NOON: jiff::Timestamp = jiff::Timestamp::constant(1_767_614_400, 0);

/// Result of all cases.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Findings about files and cases that could not be read or run.
    pub findings: Vec<Finding>,
    pub cases: Vec<CaseReport>,
    pub coverage: Coverage,
}

/// Result of one case.
#[derive(Debug, Serialize)]
pub struct CaseReport {
    pub file: PathBuf,
    /// Line of the case, from 1.
    pub line: u32,
    pub name: String,
    #[serde(rename = "as")]
    pub who: String,
    #[serde(rename = "do")]
    pub action: String,
    #[serde(rename = "on", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub expected: &'static str,
    pub actual: &'static str,
    /// The policies that decided.
    pub rules: Vec<Rule>,
    /// Their obligations, by the names of the annotations.
    pub asks: BTreeSet<&'static str>,
    /// Failures of policies.
    pub errors: Vec<Failure>,
    pub passed: bool,
    /// Explanation of a failed case: the case, and the policies that decided.
    #[serde(skip)]
    pub failure: Vec<Finding>,
}

/// Coverage of policies by cases.
#[derive(Debug, Serialize)]
pub struct Coverage {
    /// Number of policies.
    pub policies: usize,
    /// Policies that decide no case.
    pub undecided: Vec<Rule>,
}

impl Coverage {
    /// Percentage of policies that decide a case, rounded down. 100 if there are no policies.
    pub fn percent(&self) -> usize {
        match self.policies {
            0 => 100,
            policies => (policies - self.undecided.len()) * 100 / policies,
        }
    }
}

/// Runs the case files in paths and folders, and those beside policy files. Names are relative to
/// `base`. `filter` selects cases by a part of their names, ignoring case.
pub fn run(paths: &[PathBuf], base: &Path, filter: Option<&str>) -> Report {
    let mut runner = Runner {
        base,
        filter: filter.map(str::to_lowercase),
        engines: HashMap::new(),
        findings: Vec::new(),
        cases: Vec::new(),
        rules: BTreeMap::new(),
    };
    let (files, policies) = runner.find(paths);
    for file in files {
        runner.file(file);
    }
    // Policies without a case file are covered by no case.
    for path in policies {
        let tools = runner.tools_beside(&path);
        runner.engine(std::iter::once(path).chain(tools).collect());
    }
    runner.report()
}

struct Runner<'a> {
    base: &'a Path,
    filter: Option<String>,
    engines: HashMap<Vec<PathBuf>, Option<std::rc::Rc<Engine>>>,
    findings: Vec<Finding>,
    cases: Vec<CaseReport>,
    /// Every policy by file and line, with whether it decided a case.
    rules: BTreeMap<(PathBuf, u32), (Rule, bool)>,
}

impl Runner<'_> {
    /// The case files and policy files in these paths, each once, sorted.
    fn find(&mut self, paths: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let (mut cases, mut policies) = (Vec::new(), Vec::new());
        for path in paths {
            let path = path.strip_prefix(self.base).unwrap_or(path);
            let full = self.base.join(path);
            let names = match fs::metadata(&full) {
                Ok(data) if data.is_dir() => fs::read_dir(&full).and_then(|entries| {
                    let name =
                        |entry: std::io::Result<fs::DirEntry>| Ok(path.join(entry?.file_name()));
                    entries.map(name).collect()
                }),
                Ok(_) => Ok(vec![path.to_owned()]),
                Err(error) => Err(error),
            };
            match names {
                Ok(names) => {
                    for name in names {
                        if is_case_file(&name) {
                            cases.push(name);
                        } else if name.extension().is_some_and(|extension| extension == "cedar") {
                            cases.extend(
                                ["test.yaml", "test.yml"]
                                    .map(|end| name.with_extension(end))
                                    .into_iter()
                                    .filter(|cases| self.base.join(cases).is_file()),
                            );
                            policies.push(name);
                        }
                    }
                }
                Err(error) => {
                    let message = format!("cannot read {}: {error}", path.display());
                    self.findings.push(Finding::error("policy-unreadable", message).file(path));
                }
            }
        }
        for names in [&mut cases, &mut policies] {
            names.sort();
            names.dedup();
        }
        (cases, policies)
    }

    /// The engine of these policies; their findings are reported once.
    fn engine(&mut self, paths: Vec<PathBuf>) -> Option<std::rc::Rc<Engine>> {
        if let Some(engine) = self.engines.get(&paths) {
            return engine.clone();
        }
        let engine = match Engine::load(&paths, self.base) {
            Ok(engine) => {
                // A policy in shadow mode decides nothing.
                for rule in engine.rules().into_iter().filter(|rule| !rule.obligations.shadow) {
                    let file = rule.file.clone().unwrap_or_default();
                    let key = (file, rule.line.unwrap_or_default());
                    self.rules.entry(key).or_insert((rule, false));
                }
                Some(std::rc::Rc::new(engine))
            }
            Err(diagnostics) => {
                self.findings.extend(diagnostics.findings().iter().cloned());
                None
            }
        };
        self.engines.insert(paths, engine.clone());
        engine
    }

    fn file(&mut self, name: PathBuf) {
        let text = match fs::read_to_string(self.base.join(&name)) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("cannot read {}: {error}", name.display());
                self.findings.push(Finding::error("policy-unreadable", message).file(name));
                return;
            }
        };
        let file = File { name, text: text.into() };
        let document: Document = match read(&file, "policy-cases") {
            Ok(document) => document,
            Err(finding) => return self.findings.push(*finding),
        };
        let (queries, findings) = queries(&file, &document);
        self.findings.extend(findings);
        let Some(engine) = self.engine(self.policies(&file, &document)) else { return };
        let rules = engine.rules();
        let mut folder = None;
        for question in &queries {
            let unknown =
                question.by.iter().flatten().find(|id| !rules.iter().any(|rule| rule.id == **id));
            if let Some(id) = unknown {
                let finding = unknown_policy(&file, question, id, &rules);
                self.findings.push(finding);
                continue;
            }
            let wanted = self.filter.as_ref();
            if wanted.is_some_and(|part| !question.name.to_lowercase().contains(part)) {
                continue;
            }
            let mut ran = ask(&engine, &file, question);
            if !ran.passed {
                let folder = folder.get_or_insert_with(|| self.rest_of_folder(&file, &document));
                if let Some((own, engine)) = folder {
                    let passes = ask(engine, &file, question).passed;
                    let note = other_policies(own, passes);
                    let help = format!("{}\n{note}", describe_query(question));
                    ran.failure = ran
                        .failure
                        .into_iter()
                        .enumerate()
                        .map(
                            |(at, finding)| {
                                if at == 0 { finding.help(help.clone()) } else { finding }
                            },
                        )
                        .collect();
                }
            }
            for rule in &ran.rules {
                let file = rule.file.clone().unwrap_or_default();
                let key = (file, rule.line.unwrap_or_default());
                if let Some((_, decided)) = self.rules.get_mut(&key) {
                    *decided = true;
                }
            }
            self.cases.push(ran);
        }
    }

    /// The policies of a case file: those that it names, those with its own name, or all of its
    /// folder; with the typed tools of the folder.
    fn policies(&self, file: &File, document: &Document) -> Vec<PathBuf> {
        let mut policies = self.policies_alone(file, document);
        policies.extend(self.tools_beside(&file.name));
        policies
    }

    /// The tools files in the folder of this file.
    fn tools_beside(&self, file: &Path) -> Vec<PathBuf> {
        let folder = file.parent().unwrap_or(Path::new(""));
        // An unreadable folder is reported with its policies.
        let entries = fs::read_dir(self.base.join(folder)).into_iter().flatten().flatten();
        let names = entries.map(|entry| folder.join(entry.file_name()));
        let mut names: Vec<_> = names.filter(|name| is_tools_file(name)).collect();
        names.sort();
        names
    }

    fn policies_alone(&self, file: &File, document: &Document) -> Vec<PathBuf> {
        let folder = file.name.parent().unwrap_or(Path::new(""));
        if let Some(named) = &document.policies {
            let join = |name: &String| match name.as_str() {
                "." => folder.to_owned(),
                name => folder.join(name),
            };
            return named.value.0.iter().map(join).collect();
        }
        let own = file.name.with_extension("").with_extension("cedar");
        if self.base.join(&own).is_file() { vec![own] } else { vec![folder.to_owned()] }
    }

    /// The policy file of a case file that tests it alone, and an engine with all policies of the
    /// folder, if these are more and valid.
    fn rest_of_folder(&self, file: &File, document: &Document) -> Option<(PathBuf, Engine)> {
        if document.policies.is_some() {
            return None;
        }
        let own = file.name.with_extension("").with_extension("cedar");
        let folder = file.name.parent().unwrap_or(Path::new("")).to_owned();
        if !self.base.join(&own).is_file() {
            return None;
        }
        let paths: Vec<_> = std::iter::once(folder).chain(self.tools_beside(&file.name)).collect();
        let engine = Engine::load(&paths, self.base).ok()?;
        let others = engine.rules().iter().any(|rule| rule.file.as_ref() != Some(&own));
        others.then_some((own, engine))
    }

    fn report(mut self) -> Report {
        self.findings.sort_by_key(Finding::order);
        self.findings.dedup_by_key(|finding| (finding.order(), finding.to_string()));
        let policies = self.rules.len();
        let undecided = self.rules.into_values().filter(|(_, decided)| !decided);
        let undecided = undecided.map(|(rule, _)| rule).collect();
        Report {
            findings: self.findings,
            cases: self.cases,
            coverage: Coverage { policies, undecided },
        }
    }
}

/// Note about a failed case of a file whose policies are tested alone.
fn other_policies(own: &Path, passes: bool) -> String {
    let own = own.file_name().unwrap_or_default().to_string_lossy();
    let effect = if passes { "; with them, this case passes" } else { "" };
    format!(
        "these cases test the policies of `{own}` alone; `policies: .` at the top of the file tests \
         all policies of the folder{effect}"
    )
}

fn unknown_policy(file: &File, question: &Query, id: &str, rules: &[Rule]) -> Finding {
    let near = rules
        .iter()
        .map(|rule| (strsim::damerau_levenshtein(&rule.id, id), &rule.id))
        .min()
        .filter(|(distance, near)| *distance <= 2.max(near.len() / 3));
    let (start, length) = question.by_span;
    let finding = Finding::error("policy-cases", format!("no policy has the id `{id}`")).at(
        file,
        start,
        length,
        "is not among the policies of these cases",
    );
    match near {
        Some((_, near)) => finding.help(format!("did you mean `{near}`?")),
        None => finding.help("`policies:` at the top of the file names the policies under test"),
    }
}

fn ask(engine: &Engine, file: &File, question: &Query) -> CaseReport {
    let (subject, resource) = question.sides();
    let listed = matches!(question.expect, Expect::Shown | Expect::Hidden);
    let (actual, outcome) = if listed {
        let shown = engine.could_allow(&subject, question.action, &resource);
        (if shown { Expect::Shown } else { Expect::Hidden }, None)
    } else {
        let written = question.args.as_ref().and_then(|args| serde_json::to_vec(args).ok());
        let context = &question.context;
        // Actions of the proxy itself have no transport.
        let (transport, revision) = match question.sides {
            Sides::Message(..) => (Some(Transport::Http), Some(Revision::LATEST_LEGACY)),
            Sides::ProxyAction(_) => (None, None),
        };
        let outcome = engine.decide(&Request {
            subject,
            action: question.action,
            resource,
            args: question.args.as_ref(),
            written: written.as_deref().unwrap_or_default(),
            circumstances: Circumstances {
                method: &question.method,
                transport: context.transport.or(transport),
                revision: context.revision.or(revision),
                now: context.now.unwrap_or(NOON),
                source_ip: context.source_ip,
                session_calls: context.session_calls.unwrap_or_default(),
                labels: context.labels.as_ref().unwrap_or(&BTreeSet::new()),
            },
        });
        let actual = match (outcome.allowed, outcome.errors.is_empty()) {
            (true, _) => Expect::Allow,
            (false, true) => Expect::Deny,
            (false, false) => Expect::Error,
        };
        (actual, Some(outcome))
    };
    let asks = outcome.as_ref().map(|outcome| asks(&outcome.rules)).unwrap_or_default();
    let failure = failure(engine, file, question, actual, outcome.as_ref());
    let (line, _) = file.position(question.row.unwrap_or(question.expect_span).0);
    let (rules, errors) = outcome.map_or_else(Default::default, |o| (o.rules, o.errors));
    CaseReport {
        file: file.name.clone(),
        line,
        name: question.name.clone(),
        who: question.who.clone(),
        action: question.word.clone(),
        target: question.target.clone(),
        expected: question.expect.as_str(),
        actual: actual.as_str(),
        rules,
        asks,
        errors,
        passed: failure.is_empty(),
        failure,
    }
}

/// Explains a failed case: the case, and the policies that decided.
fn failure(
    engine: &Engine,
    file: &File,
    question: &Query,
    actual: Expect,
    outcome: Option<&Outcome>,
) -> Vec<Finding> {
    let expected = question.expect;
    let rules = outcome.map_or(&[][..], |outcome| &outcome.rules);
    let why = outcome.map(Outcome::explain);
    let (message, at_span, label) = if actual != expected {
        let message = format!("expected {}, got {}", expected.as_str(), actual.as_str());
        let label = match &why {
            Some(why) => format!("got {}: {why}", actual.as_str()),
            None => format!("got {}", actual.as_str()),
        };
        (message, question.expect_span, label)
    } else if let Some(but) = not_by(question, rules) {
        let message = format!("got {}, but {but}", actual.as_str());
        (message, question.by_span, why.unwrap_or_default())
    } else if let Some((but, label)) = not_asked(question, rules) {
        (format!("got {}, but {but}", actual.as_str()), question.asks_span, label)
    } else {
        return Vec::new();
    };
    let mut labels = vec![(question.row, "in this row"), (Some(at_span), label.as_str())];
    labels.retain(|(at_span, _)| at_span.is_some());
    let labels = labels.into_iter().filter_map(|(at_span, label)| {
        let (start, length) = at_span?;
        Some(miette::LabeledSpan::new(Some(label.to_owned()), start, length))
    });
    let case = Finding::error("policy-case-failed", format!("{}: {message}", question.name))
        .labelled(file, labels.collect())
        .help(describe_query(question));
    let mut findings = vec![case];
    findings.extend(rules.iter().filter_map(|rule| {
        let failed = outcome.into_iter().flat_map(|outcome| &outcome.errors);
        let failed = failed.filter_map(|failure| Some((failure.rule.as_ref()?, failure)));
        let problem = failed.clone().find(|(other, _)| *other == rule);
        let label = match (problem, actual) {
            (Some((_, failure)), _) => format!("fails: {}", failure.problem),
            (None, Expect::Allow) => "permits it".to_owned(),
            _ => "forbids it".to_owned(),
        };
        engine.show(&rule.id, "policy-case-decided", &format!("`{}`", rule.id), &label)
    }));
    findings
}

/// The fault, if other policies decided than expected.
fn not_by(question: &Query, rules: &[Rule]) -> Option<String> {
    let by = question.by.as_ref()?;
    if by.is_empty() {
        return (!rules.is_empty()).then(|| "some policy decides".to_owned());
    }
    let missing = by.iter().find(|id| !rules.iter().any(|rule| rule.id == **id))?;
    Some(format!("not by `{missing}`"))
}

/// The fault and the actual obligations, if these are not the expected ones.
fn not_asked(question: &Query, rules: &[Rule]) -> Option<(String, String)> {
    let wanted = question.asks.as_ref()?;
    let actual = asks(rules);
    let but = if wanted.is_empty() {
        format!("asks for `{}`", actual.first()?)
    } else {
        let missing = wanted.iter().find(|word| !actual.contains(word.as_str()))?;
        format!("does not ask for `{missing}`")
    };
    let actual: Vec<_> = actual.into_iter().collect();
    let label = if actual.is_empty() { "nothing".to_owned() } else { actual.join(", ") };
    Some((but, format!("asks for {label}")))
}

/// Obligations of policies, by the names of their annotations.
fn asks(rules: &[Rule]) -> BTreeSet<&'static str> {
    rules
        .iter()
        .flat_map(|Rule { obligations, .. }| {
            [
                ("approve", obligations.approve.is_some()),
                ("redact", !obligations.redact.is_empty()),
                ("rate", obligations.rate.is_some()),
                ("note", obligations.note.is_some()),
                ("label", !obligations.labels.is_empty()),
                ("secrets", !obligations.secrets.is_empty()),
                ("keep", obligations.keep != Keep::default()),
            ]
        })
        .filter_map(|(name, is_set)| is_set.then_some(name))
        .collect()
}

/// The complete request, for the explanation of a failure.
fn describe_query(question: &Query) -> String {
    let mut text = format!("asked: {}", question.who);
    let groups: Vec<_> = match &question.sides {
        Sides::Message(principal, _) => principal.groups.iter().map(Group::as_str).collect(),
        Sides::ProxyAction(_) => Vec::new(),
    };
    if !groups.is_empty() {
        text += &format!(" (in {})", groups.join(", "));
    }
    text += &format!(", {}", question.word);
    if let Some(target) = &question.target {
        text += &format!(" {target}");
    }
    if let Some(args) = &question.args {
        text += &format!(", args {}", serde_json::to_string(args).unwrap_or_default());
    }
    if let Sides::Message(_, Target::Tool(..)) = &question.sides {
        let claims = question.claims;
        let claimed: Vec<_> = [
            (claims.read_only, "read_only"),
            (claims.destructive, "destructive"),
            (claims.idempotent, "idempotent"),
            (claims.open_world, "open_world"),
        ]
        .into_iter()
        .filter_map(|(claimed, name)| claimed.then_some(name))
        .collect();
        let claimed = if claimed.is_empty() { "nothing".to_owned() } else { claimed.join(", ") };
        text += &format!(", claims {claimed}");
    }
    text
}
