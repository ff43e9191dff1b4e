//! Compares the index with plain Cedar, for generated policies and requests.

use std::{collections::BTreeSet, sync::LazyLock};

use cedar_policy::{
    AuthorizationError, Authorizer, Decision, PartialEntities, PolicySet, ValidationMode, Validator,
};
use proptest::{prelude::*, sample::select, strategy::ValueTree};
use serde_json::{Map, Value};

use super::*;
use crate::{
    SCHEMA,
    diagnostics::File,
    request::*,
    schema_context::SchemaContext,
    tests::{none, whole},
    typed::Typed,
};
use portcullis_protocol::{
    claims::Claims,
    exchange::{self, Transport},
    identity::{Principal, PrincipalKind},
    names::ServerName,
};

mod cached;
mod generated;

use generated::*;

/// Results of plain Cedar with all data: decision, determining policies, errors.
type Plain = (bool, Vec<String>, Vec<(String, &'static str)>);

fn plain(terms: Terms<'_>, policies: &PolicySet, request: &Request<'_>) -> Plain {
    let about = About::of(request);
    let answer = decide_by_cedar(terms, policies, about, request);
    let own = about.own(terms.vocabulary).map(|own| decide_by_cedar(terms, policies, own, request));
    let mut all = answer;
    if let Some(own) = own {
        all.extend(own);
    }
    let of = |what: &str| -> BTreeSet<String> {
        all.iter().filter(|(_, outcome)| *outcome == what).map(|(id, _)| id.clone()).collect()
    };
    let (permits, forbids) = (of("permits"), of("forbids"));
    let allowed = forbids.is_empty() && !permits.is_empty();
    let errors = all.iter().filter(|(_, outcome)| !matches!(*outcome, "permits" | "forbids"));
    let errors: BTreeSet<_> = errors.cloned().collect();
    let reasons = if allowed { permits } else { forbids };
    (allowed, reasons.into_iter().collect(), errors.into_iter().collect())
}

/// Plain Cedar's results for one request: each policy that is satisfied or fails, with `permits`,
/// `forbids`, or its failure. Cedar names only determining policies, so each is evaluated alone.
fn decide_by_cedar(
    terms: Terms<'_>,
    policies: &PolicySet,
    about: About<'_>,
    request: &Request<'_>,
) -> BTreeSet<(String, &'static str)> {
    let (question, entities) = whole(terms.vocabulary, terms.schema, about, request);
    let mut outcomes = BTreeSet::new();
    for policy in policies.policies() {
        let alone = PolicySet::from_policies([policy.clone()]).unwrap();
        let response = Authorizer::new().is_authorized(&question, &alone, &entities);
        let effect = match policy.effect() {
            Effect::Permit => "permits",
            Effect::Forbid => "forbids",
        };
        outcomes.extend(response.diagnostics().reason().map(|id| (id.to_string(), effect)));
        let errors = response.diagnostics().errors();
        outcomes.extend(errors.map(|AuthorizationError::PolicyEvaluationError(error)| {
            (error.policy_id().to_string(), problem(error.inner()))
        }));
    }
    outcomes
}

/// Results of plain Cedar for all policies at once, for a single request.
fn at_once(terms: Terms<'_>, policies: &PolicySet, request: &Request<'_>) -> Plain {
    let (question, entities) = whole(terms.vocabulary, terms.schema, About::of(request), request);
    let response = Authorizer::new().is_authorized(&question, policies, &entities);
    let mut reasons: Vec<_> = response.diagnostics().reason().map(PolicyId::to_string).collect();
    let errors = response.diagnostics().errors();
    let mut errors: Vec<_> = errors
        .map(|AuthorizationError::PolicyEvaluationError(error)| {
            (error.policy_id().to_string(), problem(error.inner()))
        })
        .collect();
    reasons.sort();
    errors.sort();
    (response.decision() == Decision::Allow, reasons, errors)
}

fn indexed(terms: Terms<'_>, index: &Index, request: &Request<'_>) -> Plain {
    let answer = index.decide(terms, request).unwrap();
    let allowed = answer.permitted();
    let reasons = if allowed { &answer.permits } else { &answer.forbids };
    let mut reasons: Vec<_> = reasons.iter().map(|id| id.to_string()).collect();
    let failures = answer.failures.iter();
    let mut errors: Vec<_> = failures.map(|(id, why)| (id.to_string(), *why)).collect();
    reasons.sort();
    errors.sort();
    (allowed, reasons, errors)
}

/// The certain result of Cedar's partial evaluation of all policies.
fn partial(terms: Terms<'_>, policies: &PolicySet, about: &About<'_>) -> Option<bool> {
    let resource = &about.resource;
    let base = terms.vocabulary.base(*about, terms.schema).unwrap();
    let entities = terms.vocabulary.entities(&base, resource).unwrap();
    let (question, entities): (_, PartialEntities) =
        terms.vocabulary.open_question(&base, resource, &entities, terms.schema).unwrap();
    let response = policies.tpe(&question, &entities, terms.schema).unwrap();
    if response.error_forbids().next().is_some()
        || response.error_permits().next().is_some()
        || response.true_forbids().next().is_some()
    {
        return Some(false);
    }
    if let Some(own) = about.own(terms.vocabulary) {
        // Either action can permit the call. A forbid or a failure under one of them refuses it.
        return match (partial(terms, policies, &own), response.decision()) {
            (Some(false), Some(Decision::Deny)) => Some(false),
            _ => None,
        };
    }
    match response.decision()? {
        Decision::Deny => Some(false),
        // A permit that is not certain may fail, and a failure refuses.
        Decision::Allow => response.residual_permits().next().is_none().then_some(true),
    }
}

fn check(texts: &[String], seed: usize, ground: &SchemaContext) -> Result<(), TestCaseError> {
    let terms = ground.terms();
    let policies = valid(texts, terms.schema);
    let index = Index::new(&policies.policies().collect::<Vec<_>>(), terms.vocabulary);
    let (principals, args) = (principals(), written());
    let servers = ["s".parse().unwrap(), "other".parse().unwrap()];
    let (mut questions, programs) = (questions(&principals, &servers), programs());
    if terms.vocabulary.has_own_actions() {
        let typed = |about: &About<'_>| about.own(terms.vocabulary).is_some();
        let other = |at: usize| at.is_multiple_of(16);
        let mut at = 0;
        questions.retain(|about| {
            at += 1;
            typed(about) || other(at)
        });
    }
    let own = own(&programs, &servers);
    // A part of them, from another start each time: pairs of the same action, in an order that
    // mixes all kinds.
    let pairs = (0..20).map(|step| seed + step * 37).flat_map(|at| [at, at + 2]);
    let some = pairs.map(|at| questions[at % questions.len()]);
    let some = some.chain((0..6).map(|step| own[(seed + step * 5) % own.len()]));
    for about in some.clone().chain(some) {
        let shown = index.could_allow(terms, CachedSubject::of(&about.subject), about).unwrap();
        if let Some(certain) = partial(terms, &policies, &about) {
            prop_assert_eq!(shown, certain, "shown: {:?}\n{}", about, policies);
        }
        for request in requests(about, &args) {
            let is_typed = about.own(terms.vocabulary).is_some();
            if is_typed && terms.vocabulary.input(&request).is_err() {
                prop_assert_eq!(unfit(terms, &index, &policies, &request), Ok(()));
                continue;
            }
            let expected = match is_typed {
                true => plain(terms, &policies, &request),
                false => at_once(terms, &policies, &request),
            };
            let found = indexed(terms, &index, &request);
            prop_assert_eq!(&found, &expected, "{:?}\n{}", request, policies);
            let (allowed, _, errors) = found;
            prop_assert!(
                shown || !allowed || !errors.is_empty(),
                "allowed and not shown: {:?}\n{}",
                about,
                policies
            );
        }
    }
    Ok(())
}

/// For arguments that do not fit the tool's type, the index returns an error, or the result without
/// policies that are about them.
fn unfit(
    terms: Terms<'_>,
    index: &Index,
    policies: &PolicySet,
    request: &Request<'_>,
) -> Result<(), String> {
    let answer = match index.decide(terms, request) {
        Err(RequestError::InputMismatch(_)) => return Ok(()),
        Err(other) => return Err(other.to_string()),
        Ok(answer) => answer,
    };
    let all = answer.permits.iter().chain(&answer.forbids);
    for id in all.chain(answer.failures.iter().map(|(id, _)| id)) {
        let text = policies.policy(id).unwrap().to_string();
        if text.contains("context.input") || text.contains(r#"Action::"s/"#) {
            // Matched under the action of all tools, which has no input.
            let found = decide_by_cedar(terms, policies, About::of(request), request);
            if !found.iter().any(|(found, _)| *found == id.to_string()) {
                return Err(text);
            }
        }
    }
    Ok(())
}

/// Without typed tools, and with some.
fn grounds() -> &'static [SchemaContext; 2] {
    const TOOLS: &str = r#"{"tools": [
        {"name": "t", "inputSchema": {"type": "object", "properties": {
            "a": {"type": "string"}, "x": {"type": "integer"}, "b": {"type": "object"}}}},
        {"name": "tools/call", "inputSchema": {"type": "object", "required": ["a"], "properties": {
            "a": {"type": "string"},
            "b": {"type": "object", "properties": {"c": {"type": "integer"}}}}}}
    ]}"#;
    static GROUNDS: LazyLock<[SchemaContext; 2]> = LazyLock::new(|| {
        let file = File { name: "s.tools.json".into(), text: TOOLS.into() };
        let mut findings = Vec::new();
        let typed = Typed::read(&[file], &mut findings);
        assert!(findings.is_empty(), "{findings:?}");
        [SchemaContext::new(Typed::default()).unwrap(), SchemaContext::new(typed).unwrap()]
    });
    &GROUNDS
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn index_agrees_with_cedar(
        texts in proptest::collection::vec(policy(), 0..16),
        seed in 0..1000_usize,
    ) {
        check(&texts, seed, &grounds()[0])?;
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Only policies about typed tools.
    #[test]
    fn index_agrees_with_cedar_about_typed_tools(
        texts in proptest::collection::vec(typed_policy(), 1..6),
        others in proptest::collection::vec(policy(), 0..4),
        seed in 0..1000_usize,
    ) {
        check(&[texts, others].concat(), seed, &grounds()[1])?;
    }
}
