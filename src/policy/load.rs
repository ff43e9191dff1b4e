//! Loads policy files as one validated set, or reports findings.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use cedar_policy::{
    Effect, EntityUid, Policy, PolicyId, PolicySet, Schema, ValidationError, ValidationMode,
    ValidationWarning, Validator,
};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::{
    SCHEMA,
    bundle::Origin,
    diagnostics::{Diagnostics, File, Finding},
    files,
    schema_context::SchemaContext,
    source::Source,
    typed::{Typed, is_tools_file},
};
use portcullis_protocol::{
    names::ServerName,
    obligations::{Keep, Obligations},
    refusal::Rule,
};

/// The known annotations. An unknown one is an error: ignoring it would drop the intent of its
/// author.
fn annotations() -> impl Iterator<Item = &'static str> {
    ["id", "reason"].into_iter().chain(Obligations::NAMES)
}

/// Revision of a policy set: SHA-256 of the names and contents of all files. Displays as its first
/// 12 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision([u8; 32]);

impl Revision {
    fn of(files: &[File]) -> Self {
        let mut hash = Sha256::new();
        for file in files {
            for part in [file.name.as_os_str().as_encoded_bytes(), file.text.as_bytes()] {
                // The length first, so that a name cannot run into the content.
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

impl Serialize for Revision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A validated policy set.
pub(super) struct Loaded {
    pub(super) policies: PolicySet,
    /// The rule of each policy. The [`PolicyId`] is the id of the rule.
    pub(super) rules: HashMap<PolicyId, Rule>,
    /// Position of each policy in its file.
    pub(super) spans: HashMap<PolicyId, Span>,
    pub(super) revision: Revision,
    /// The schema of the policies and of requests to them.
    pub(super) ground: Arc<SchemaContext>,
    /// Findings that are not errors.
    pub(super) warnings: Vec<Finding>,
    /// The bundle that contains the set, if there is one.
    pub(super) bundle: Option<Origin>,
}

/// Text of a policy: its file, offset and length.
pub(super) struct Span {
    pub(super) file: File,
    pub(super) start: usize,
    pub(super) length: usize,
}

/// Reads all files of a set and validates them as one. Paths below `base` are shown relative to it,
/// other paths as given. `plain` is the schema context of a set without typed tools.
pub(super) fn load(
    source: &Source,
    base: &Path,
    plain: &Arc<SchemaContext>,
) -> Result<Loaded, Diagnostics> {
    let mut findings = Vec::new();
    let (files, bundle) = source.read(base, &mut findings);
    if source.bundle().is_some() && bundle.is_none() {
        // The contents of an unverified bundle are never read.
        return Err(Diagnostics::new(findings));
    }
    Ok(Loaded { bundle, ..validated(&files, findings, plain)? })
}

/// How to write a set that begins at a byte of a scope, where Cedar takes only one entity.
fn set_help(text: &str, offset: Option<usize>) -> String {
    let before = offset.and_then(|offset| text.get(..offset)).unwrap_or_default();
    let at = |word| before.rfind(word).map(|at| (at, word));
    let part = ["principal", "resource"].into_iter().filter_map(at).max();
    let part = part.map_or("resource", |(_, word)| word);
    format!("only `action` takes a list: write `{part}`, and `when {{ {part} in […] }}`")
}

/// Validates files as one set, if there are no findings from before.
fn validated(
    files: &[File],
    mut findings: Vec<Finding>,
    plain: &Arc<SchemaContext>,
) -> Result<Loaded, Diagnostics> {
    let revision = Revision::of(files);
    let before = findings.len();
    let ground = ground(files, plain, &mut findings);
    let untyped = findings.len() > before;
    let schema = &ground.schema;

    let mut policies = PolicySet::new();
    let mut rules: HashMap<PolicyId, Rule> = HashMap::new();
    let mut spans: HashMap<PolicyId, Span> = HashMap::new();
    for file in files.iter().filter(|file| !is_tools_file(&file.name)) {
        let parsed = match file.text.parse::<PolicySet>() {
            Ok(parsed) => parsed,
            Err(errors) => {
                findings.extend(errors.iter().map(|error| {
                    let finding = Finding::of("policy-syntax", file, error);
                    // Cedar does not say that only the scope of an action can have a set.
                    if error.to_string().contains("found set of entity uids") {
                        let help = set_help(&file.text, finding.offset());
                        finding.help(help)
                    } else {
                        finding
                    }
                }));
                continue;
            }
        };
        for template in parsed.templates() {
            let (start, length) = span(template.as_ref().loc());
            findings.push(
                Finding::error("policy-template", "templates are not supported")
                    .at(file, start, length, "has a slot (`?principal` or `?resource`)")
                    .help("write one policy for each principal or resource, or use a group"),
            );
        }
        // Lines are counted from the previous policy on: counting from the beginning each time
        // takes half a minute for a file of ten thousand policies.
        let (mut counted, mut line) = (0, 1);
        for policy in in_order(&parsed) {
            let (start, length) = span(policy.as_ref().loc());
            let between = file.text.as_bytes().get(counted..start).unwrap_or_default();
            line += memchr::memchr_iter(b'\n', between).count() as u32;
            counted = counted.max(start);
            let obligations = Arc::new(check_annotations(policy, file, &mut findings));
            let id = match policy.annotation("id") {
                Some(id) if !id.is_empty() => id.to_owned(),
                _ => format!("{}:{line}", file.name.display()),
            };
            let key = PolicyId::new(&id);
            if let Some(first) = rules.get(&key) {
                findings.push(
                    Finding::error("policy-duplicate-id", format!("the id `{id}` is taken"))
                        .at(file, start, length, "the second policy of that id")
                        .help(format!(
                            "the first is at {}; give each an id of its own",
                            address(first)
                        )),
                );
                continue;
            }
            if let Err(error) = policies.add(policy.new_id(key.clone())) {
                findings.push(Finding::of("policy-invalid", file, &error));
                continue;
            }
            spans.insert(key.clone(), Span { file: file.clone(), start, length });
            let reason = policy.annotation("reason").map(str::to_owned);
            let file = Some(file.name.clone());
            rules.insert(key, Rule { id, file, line: Some(line), reason, obligations });
        }
    }

    if untyped {
        // Policies may refer to actions that exist only if the lists of tools are valid.
        findings.sort_by_key(Finding::order);
        return Err(Diagnostics::new(findings));
    }
    let found = |code, id: &PolicyId, found: &dyn miette::Diagnostic| match spans.get(id) {
        Some(policy_span) => Finding::of(code, &policy_span.file, found),
        None => Finding::error(code, found.to_string()),
    };
    let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
    // For a policy with an error, or one that fits no action, Cedar also reports that it never
    // applies: one finding is enough.
    let mut reported: HashSet<_> = result.validation_errors().map(|e| e.policy_id()).collect();
    findings.extend(result.validation_errors().map(|error| {
        let finding = found("policy-invalid", error.policy_id(), error);
        match error {
            ValidationError::UnrecognizedActionId(_) => match nearest_action(&finding, schema) {
                Some(near) => finding.help(format!("did you mean `{near}`?")),
                None => finding.help("`portcullis schema cedar` lists the actions"),
            },
            ValidationError::UnsafeAttributeAccess(_) => match tag_of(&finding) {
                Some(help) => finding.help(help),
                None => finding,
            },
            _ => finding,
        }
    }));
    let warnings: Vec<_> = result
        .validation_warnings()
        .filter(|warning| match warning {
            ValidationWarning::InvalidActionApplication(_)
            | ValidationWarning::ImpossiblePolicy(_) => reported.insert(warning.policy_id()),
            _ => true,
        })
        .map(|warning| found("policy-warning", warning.policy_id(), warning).warning())
        .collect();
    if findings.is_empty() {
        Ok(Loaded { policies, rules, spans, revision, ground, warnings, bundle: None })
    } else {
        findings.extend(warnings);
        findings.sort_by_cached_key(|finding| (finding.order(), finding.to_string()));
        findings.dedup_by(|one, before| {
            (one.order(), one.to_string()) == (before.order(), before.to_string())
                || one.repeats(before)
        });
        Err(Diagnostics::new(findings))
    }
}

/// The schema of the policies in these paths, with the actions of typed tools. Faults of the
/// policies themselves are ignored.
///
/// # Errors
/// The findings about the files of tools.
pub fn schema(paths: &[PathBuf], base: &Path) -> Result<Cow<'static, str>, Diagnostics> {
    let mut findings = Vec::new();
    let files = files::read(paths, base, &mut findings);
    // Unreadable files are not files of tools, or were reported when the policies were loaded.
    findings.clear();
    let typed = Typed::read(&files, &mut findings);
    match (findings.is_empty(), typed.schema()) {
        (false, _) => Err(Diagnostics::new(findings)),
        (true, Some(schema)) => Ok(schema.to_owned().into()),
        (true, None) => Ok(SCHEMA.into()),
    }
}

/// The schema context of a set with these files.
fn ground(
    files: &[File],
    plain: &Arc<SchemaContext>,
    findings: &mut Vec<Finding>,
) -> Arc<SchemaContext> {
    let typed = Typed::read(files, findings);
    if typed.schema().is_none() {
        return Arc::clone(plain);
    }
    SchemaContext::new(typed).map(Arc::new).unwrap_or_else(|problem| {
        let message = format!("no schema can be built from the typed tools: {problem}");
        let help = "take the files of tools out one by one, to find the one that it is about";
        findings.push(Finding::error("typed-tools", message).help(help));
        Arc::clone(plain)
    })
}

impl Loaded {
    /// Ids of the policies with `@keep`.
    pub(super) fn keeping(&self) -> Vec<String> {
        let keeps =
            |rule: &&Rule| rule.obligations.keep != Keep::default() && !rule.obligations.shadow;
        let keeping = self.rules.values().filter(keeps);
        let mut ids: Vec<_> = keeping.map(|rule| rule.id.clone()).collect();
        ids.sort();
        ids
    }

    /// A warning for each mention of a server whose name is nearly that of one of the config, and
    /// for each file of tools of an unknown server.
    pub(super) fn misspelled_servers(&self, configured: &[&ServerName]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for policy in self.policies.policies() {
            let Some(policy_span) = self.spans.get(policy.id()) else { continue };
            for literal in policy.entity_literals() {
                let Some(name) = server_of(&literal) else { continue };
                let Some(near) = near_server(name, configured) else { continue };
                let message = format!("the config has no server `{name}`");
                let label = "is on no server of the config";
                let text = literal.to_string();
                let finding = policy_span.warn("policy-unknown-server", message, &text, label);
                findings.push(finding.help(format!("did you mean `{near}`?")));
            }
        }
        for (server, file) in self.ground.vocabulary.typed().files() {
            if !configured.contains(&server) {
                let message = format!(
                    "{} is about `{server}`, and the config has no such server",
                    file.display()
                );
                let help = format!("add `[servers.{server}]` to the config, or take the file out");
                let finding = Finding::error("policy-unknown-server", message).warning();
                findings.push(finding.file(file).help(help));
            }
        }
        findings.sort_by_key(Finding::order);
        findings
    }

    /// The servers that policies name, the config lacks, and that are no misspelled ones of it.
    /// Policies about them have no effect.
    pub(super) fn absent_servers(&self, configured: &[&ServerName]) -> BTreeSet<String> {
        let literals = self.policies.policies().flat_map(|policy| policy.entity_literals());
        let absent = literals.filter(|literal| is_absent(literal, configured));
        absent.filter_map(|literal| server_of(&literal).map(str::to_owned)).collect()
    }
}

impl Span {
    /// A warning at the first occurrence of a text in the policy, or at the policy itself.
    pub(super) fn warn(
        &self,
        code: &'static str,
        message: String,
        text: &str,
        label: &str,
    ) -> Finding {
        let policy = self.file.text.get(self.start..self.start + self.length).unwrap_or("");
        let (start, length) = match policy.find(text) {
            Some(offset) => (self.start + offset, text.len()),
            None => (self.start, self.length),
        };
        Finding::error(code, message).warning().at(&self.file, start, length, label)
    }
}

/// The existing action that is nearest to the one in the finding.
fn nearest_action(finding: &Finding, schema: &Schema) -> Option<String> {
    let written = finding.snippet()?.split('"').nth(1)?;
    let distance =
        |action: &EntityUid| strsim::damerau_levenshtein(action.id().unescaped(), written);
    let near = schema.actions().min_by_key(|action| distance(action))?;
    (distance(near) <= 3).then(|| near.to_string())
}

/// The correct form of an argument written as an attribute, such as `context.args.path`.
fn tag_of(finding: &Finding) -> Option<String> {
    let written = finding.snippet()?;
    ["context.args", "context.paths", "context.urls", "context.lists"].iter().find_map(|of| {
        let rest = written.strip_prefix(of)?.strip_prefix('.')?;
        let end = rest.find(|char: char| !char.is_alphanumeric() && char != '_');
        let name = rest.get(..end.unwrap_or(rest.len())).filter(|name| !name.is_empty())?;
        let is_allowed = *of == "context.args" && ["keys", "leaves", "size"].contains(&name);
        (!is_allowed).then(|| {
            format!(
                "arguments are tags by their JSON pointers: \
                 `{of}.hasTag(\"/{name}\") && {of}.getTag(\"/{name}\")`"
            )
        })
    })
}

/// `FILE:LINE` of a rule.
fn address(rule: &Rule) -> String {
    match (&rule.file, rule.line) {
        (Some(file), Some(line)) => format!("{}:{line}", file.display()),
        _ => rule.id.clone(),
    }
}

/// Offset and length of a policy. Cedar does not re-export the type of its locations, so they are
/// accepted by their conversion.
pub fn span(location: Option<&(impl Clone + Into<miette::SourceSpan>)>) -> (usize, usize) {
    location.map_or((0, 0), |location| {
        let span: miette::SourceSpan = location.clone().into();
        (span.offset(), span.len())
    })
}

fn in_order(parsed: &PolicySet) -> Vec<&Policy> {
    let mut policies: Vec<_> = parsed.policies().collect();
    policies.sort_by_key(|policy| span(policy.as_ref().loc()));
    policies
}

/// Checks the annotations of a policy and returns its obligations.
fn check_annotations(policy: &Policy, file: &File, findings: &mut Vec<Finding>) -> Obligations {
    let mut obligations = Obligations::default();
    for (key, annotation) in policy.as_ref().annotations() {
        let key = key.as_ref();
        let (start, length) = span(annotation.loc.as_ref());
        let wrong = |problem: String, label: &str, help: String| {
            Finding::error("policy-annotation", problem).at(file, start, length, label).help(help)
        };
        if !annotations().any(|known| known == key) {
            let near = annotations().find(|known| strsim::damerau_levenshtein(known, key) <= 2);
            let help = match near {
                Some(near) => format!("did you mean `@{near}`?"),
                None => {
                    let known: Vec<_> = annotations().map(|name| format!("`@{name}`")).collect();
                    let known = known.join(", ");
                    format!("known are {known}; remove it: it has no effect")
                }
            };
            let problem = format!("unknown annotation `@{key}`");
            findings.push(wrong(problem, "means nothing here", help));
        } else if annotation.val.is_empty() {
            let problem = format!("`@{key}` is empty");
            let help = format!("write `@{key}(\"…\")`, or leave it out");
            findings.push(wrong(problem, "has no text", help));
        } else if policy.effect() == Effect::Forbid && Obligations::OF_PERMITS.contains(&key) {
            let problem = format!("`@{key}` has an effect only with `permit`");
            let help = "put it on a `permit`, or take it out".to_owned();
            findings.push(wrong(problem, "means nothing on a `forbid`", help));
        } else if let Err(illegal) = obligations.take(key, &annotation.val) {
            findings.push(wrong(illegal.problem, "cannot be done", illegal.help));
        }
    }
    obligations
}

/// The server that a policy names, or that of the item that it names.
fn server_of(literal: &EntityUid) -> Option<&str> {
    let id = literal.id().unescaped();
    match literal.type_name().basename() {
        "Server" => Some(id),
        "Tool" | "Prompt" | "Resource" | "ResourceTemplate" => {
            Some(id.split_once('/').map_or(id, |(server, _)| server))
        }
        _ => None,
    }
}

/// Whether this is a server or an item of one.
pub(super) fn is_of_server(literal: &EntityUid) -> bool {
    server_of(literal).is_some()
}

/// The server of the config that an unknown name was probably meant to be.
fn near_server<'a>(name: &str, configured: &[&'a ServerName]) -> Option<&'a ServerName> {
    if configured.iter().any(|server| server.as_str() == name) {
        return None;
    }
    let near = configured
        .iter()
        .map(|server| (strsim::damerau_levenshtein(server.as_str(), name), *server))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    near.map(|(_, server)| server)
}

/// Whether this is a server, or an item of one, that the config lacks and that is not misspelled.
pub(super) fn is_absent(literal: &EntityUid, configured: &[&ServerName]) -> bool {
    server_of(literal).is_some_and(|name| {
        let known = configured.iter().any(|server| server.as_str() == name);
        !known && near_server(name, configured).is_none()
    })
}
