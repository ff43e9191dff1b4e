//! The requests of a case file: every case, for each of its rows, principals, actions and targets.

use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::{
    file::{Case, CasePrincipal, Context, Document, Expect, Hints, OneOrMany, party},
    proxy_actions::ProxyAction,
    yaml::span,
};
use portcullis_policy::{
    Action, File, Finding, Resource, Subject, Target, server_action, worded_action,
};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::identity::Principal;

/// A request with its expected result.
pub(super) struct Query {
    pub(super) name: String,
    pub(super) who: String,
    pub(super) word: String,
    pub(super) target: Option<String>,
    pub(super) action: Action,
    pub(super) method: String,
    pub(super) sides: Sides,
    pub(super) claims: Claims,
    pub(super) args: Option<Map<String, Value>>,
    pub(super) context: Context,
    pub(super) expect: Expect,
    pub(super) by: Option<Vec<String>>,
    pub(super) asks: Option<Vec<String>>,
    /// Position of the row, if the case has rows.
    pub(super) row: Option<Span>,
    pub(super) expect_span: Span,
    pub(super) by_span: Span,
    pub(super) asks_span: Span,
}

/// The name of the action, the target, the Cedar action, the method, and the two sides.
type Alternative = (String, Option<String>, Action, String, Sides);

/// Subject and resource of a request.
pub(super) enum Sides {
    /// Between a client and a server, in either direction.
    Message(Principal, Target),
    ProxyAction(ProxyAction),
}

impl Query {
    pub(super) fn sides(&self) -> (Subject<'_>, Resource<'_>) {
        match &self.sides {
            Sides::Message(principal, target) => target.sides(principal, self.claims),
            Sides::ProxyAction(own) => own.sides(),
        }
    }
}

/// Offset and length in the file.
pub(super) type Span = (usize, usize);

/// All requests of a file, and all of its faults.
pub(super) fn queries(file: &File, document: &Document) -> (Vec<Query>, Vec<Finding>) {
    let mut reader = Reader { file, document, queries: Vec::new(), findings: Vec::new() };
    for case in &document.cases {
        reader.case(case);
    }
    (reader.queries, reader.findings)
}

struct Reader<'a> {
    file: &'a File,
    document: &'a Document,
    queries: Vec<Query>,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn at_span<T>(&self, of: &Spanned<T>) -> Span {
        span(self.file, of.referenced)
    }

    fn wrong(&mut self, at_span: Span, message: impl Into<String>, label: &str, help: &str) {
        let finding =
            Finding::error("policy-cases", message).at(self.file, at_span.0, at_span.1, label);
        self.findings.push(if help.is_empty() { finding } else { finding.help(help) });
    }

    fn case(&mut self, case: &Spanned<Case>) {
        let at_span = self.at_span(case);
        let Some(name) = &case.value.name else {
            self.wrong(at_span, "the case has no name", "begins here", "add `name: …`");
            return;
        };
        let Some(rows) = &case.value.each else {
            self.add_queries(name.clone(), &case.value, at_span, None);
            return;
        };
        if rows.is_empty() {
            self.wrong(at_span, "the case has no rows, so it asks nothing", "`each` is empty", "");
        }
        for (at, row) in rows.iter().enumerate() {
            let at_span = self.at_span(row);
            if row.value.each.is_some() {
                self.wrong(at_span, "a row has no rows of its own", "has `each`", "");
                continue;
            }
            let name = match &row.value.name {
                Some(row) => format!("{name}: {row}"),
                None => format!("{name} (row {})", at + 1),
            };
            self.add_queries(name, &over(&row.value, &case.value), at_span, Some(at_span));
        }
    }

    /// Adds the requests of one row, or of a case without rows.
    fn add_queries(&mut self, name: String, case: &Case, at_span: Span, row: Option<Span>) {
        let Some(expect) = &case.expect else {
            let help = "add `expect:` `allow`, `deny`, `shown`, `hidden` or `error`";
            return self.wrong(at_span, "the case expects nothing", "begins here", help);
        };
        let Some(who) = &case.who else {
            let help = "add `as:` and a party";
            return self.wrong(at_span, "the case does not name a principal", "begins here", help);
        };
        let Some((actions, targets, targets_span)) = self.actions(case, at_span) else { return };
        let listed = matches!(expect.value, Expect::Shown | Expect::Hidden);
        if let Some(by) = case.by.as_ref().filter(|_| listed) {
            let help = "what lists show is what no set of circumstances allows: take `by` out";
            let at_span = self.at_span(by);
            return self.wrong(at_span, "no one policy decides what lists show", "", help);
        }
        if let Some(asks) = &case.asks {
            let at_span = self.at_span(asks);
            if listed || expect.value != Expect::Allow {
                let help = "take `asks` out";
                return self.wrong(at_span, "only what is allowed asks for more", "", help);
            }
            let unknown = asks.value.0.iter().find(|word| !OBLIGATIONS.contains(&word.as_str()));
            if let Some(word) = unknown {
                let message = format!("there is no obligation `{}`", word.escape_debug());
                let help = format!("known here: {}", OBLIGATIONS.join(", "));
                return self.wrong(at_span, message, "", &help);
            }
        }
        for word in &who.value.0 {
            let party = match party(word, self.document) {
                Ok(party) => party,
                Err(help) => {
                    let at_span = self.at_span(who);
                    let message = format!("there is no principal `{}`", word.escape_debug());
                    self.wrong(at_span, message, "is not a principal", &help);
                    continue;
                }
            };
            let combinations = match ProxyAction::of(case, &party) {
                Some(Ok(queries)) => queries
                    .into_iter()
                    .map(|(target, own)| {
                        let action = own.action();
                        let method = String::new();
                        let word = action.as_str().to_owned();
                        (word, Some(target), action, method, Sides::ProxyAction(own))
                    })
                    .collect(),
                Some(Err(problem)) => {
                    // If the principal is a server, the host is invalid.
                    let at_span = match (&party, &case.egress) {
                        (CasePrincipal::Server(_), Some(reach)) => self.at_span(reach),
                        _ => self.at_span(who),
                    };
                    return self.wrong(at_span, problem, "", "");
                }
                None => {
                    let who = self.at_span(who);
                    let Some(combinations) =
                        self.combined(&party, &actions, &targets, targets_span, who)
                    else {
                        return;
                    };
                    combinations
                }
            };
            for (asked_word, target, action, method, sides) in combinations {
                if listed && !LISTED.contains(&action) {
                    let at_span = self.at_span(expect);
                    let message = format!("no list has what `{}` is asked of", action.as_str());
                    let help = "lists have tools, prompts, resources and templates";
                    return self.wrong(at_span, message, "", help);
                }
                let hints = case.hints.or_else(|| {
                    target.as_ref().and_then(|tool| self.document.tools.get(tool)).copied()
                });
                let context = case.context.or(&self.document.context);
                let expect_span = self.at_span(expect);
                let at = |words: &Option<Spanned<OneOrMany>>| {
                    words.as_ref().map_or(expect_span, |words| self.at_span(words))
                };
                let words = |words: &Option<Spanned<OneOrMany>>| {
                    words.as_ref().map(|words| words.value.0.clone())
                };
                let question = Query {
                    name: name.clone(),
                    who: word.clone(),
                    word: asked_word,
                    target,
                    action,
                    method: context.method.clone().unwrap_or(method),
                    sides,
                    claims: claims(hints.unwrap_or_default()),
                    args: case.args.clone(),
                    context,
                    expect: expect.value,
                    by: words(&case.by),
                    asks: words(&case.asks),
                    row,
                    expect_span,
                    by_span: at(&case.by),
                    asks_span: at(&case.asks),
                };
                self.queries.push(question);
            }
        }
    }

    /// Every action with every target, for one principal.
    fn combined(
        &mut self,
        party: &CasePrincipal,
        actions: &[String],
        targets: &[Option<String>],
        targets_span: Span,
        who_span: Span,
    ) -> Option<Vec<Alternative>> {
        let mut combinations = Vec::new();
        for word in actions {
            for target in targets {
                let (action, method, principal, sides) =
                    self.sides(party, word, target.as_deref(), targets_span, who_span).ok()?;
                let sides = Sides::Message(principal, sides);
                combinations.push((word.clone(), target.clone(), action, method, sides));
            }
        }
        Some(combinations)
    }

    /// The names of actions, and their targets.
    fn actions(
        &mut self,
        case: &Case,
        at_span: Span,
    ) -> Option<(Vec<String>, Vec<Option<String>>, Span)> {
        let short = [
            (&case.call, "tools/call"),
            (&case.read, "resources/read"),
            (&case.get, "prompts/get"),
        ];
        let mut short = short.into_iter().filter_map(|(key, method)| Some((key.as_ref()?, method)));
        let some = |words: &Spanned<OneOrMany>| words.value.0.iter().cloned().map(Some).collect();
        let help = "give one of `call: SERVER/TOOL`, `read: SERVER/URI`, `get: SERVER/PROMPT` and \
                    `do: ACTION` with `on: TARGET`";
        let own = [
            case.launch.is_some(),
            case.deliver.is_some(),
            case.egress.is_some(),
            case.grant.is_some(),
        ];
        let own = own.into_iter().filter(|own| *own).count();
        let (first, second) = (short.next(), short.next());
        if own > 0 {
            if own == 1 && first.is_none() && case.action.is_none() && case.on.is_none() {
                return Some((Vec::new(), Vec::new(), at_span));
            }
            self.wrong(at_span, "the case has two actions", "begins here", "");
            return None;
        }
        match (first, second, &case.action) {
            (Some((targets, method)), None, None) => {
                let at_span = self.at_span(targets);
                if let Some(on) = &case.on {
                    let at_span = self.at_span(on);
                    self.wrong(at_span, "`on` goes with `do` alone", "", help);
                    return None;
                }
                Some((vec![method.to_owned()], some(targets), at_span))
            }
            (None, None, Some(actions)) => {
                let (targets, at_span) = match &case.on {
                    Some(on) => (some(on), self.at_span(on)),
                    None => (vec![None], self.at_span(actions)),
                };
                Some((actions.value.0.clone(), targets, at_span))
            }
            (None, None, None) => {
                self.wrong(at_span, "the case has no action", "begins here", help);
                None
            }
            _ => {
                self.wrong(at_span, "the case has two actions", "begins here", help);
                None
            }
        }
    }

    /// Both sides of a request.
    fn sides(
        &mut self,
        who: &CasePrincipal,
        word: &str,
        target: Option<&str>,
        target_span: Span,
        who_span: Span,
    ) -> Result<(Action, String, Principal, Target), ()> {
        let (action, method) = worded_action(word);
        let is_action = action.as_str() == word;
        if let CasePrincipal::Server(server) = who {
            let action =
                if is_action { action } else { server_action(word, word.starts_with("notif")) };
            let clients = worded_action(word).0;
            let is_method = matches!(clients, Action::OtherMethod | Action::NotifyServer);
            if !is_server_action(action) || !(is_method || is_server_action(clients)) {
                let message = format!("a server does not ask for `{}`", word.escape_debug());
                self.wrong(who_span, message, "is a server", "");
                return Err(());
            }
            let Some(client) = target else {
                let message = format!("`{}` is asked of a client", action.as_str());
                self.wrong(target_span, message, "does not name a client", "add `on:` and a party");
                return Err(());
            };
            let principal = party(client, self.document).ok().and_then(|who| who.principal());
            let Some(principal) = principal else {
                let message = format!("`{}` is not a client", client.escape_debug());
                self.wrong(target_span, message, "is asked", super::file::FORMS);
                return Err(());
            };
            return Ok((action, method.to_owned(), principal, Target::Requester(server.clone())));
        }
        if is_server_action(action) {
            let message = format!("`{}` is asked by a server", action.as_str());
            self.wrong(who_span, message, "is not a server", "write `as: server:NAME`");
            return Err(());
        }
        let sides = match Target::parse(action, target) {
            Ok(sides) => sides,
            Err(error) => {
                self.wrong(target_span, error.to_string(), "does not name that", "");
                return Err(());
            }
        };
        let Some(principal) = who.principal() else {
            self.wrong(who_span, "a plugin asks for nothing", "is a plugin", "");
            return Err(());
        };
        Ok((action, method.to_owned(), principal, sides))
    }
}

/// Obligations, by the names of their annotations.
const OBLIGATIONS: [&str; 7] = ["approve", "redact", "rate", "note", "label", "secrets", "keep"];

/// Actions that decide what lists show.
const LISTED: [Action; 5] = [
    Action::CallTool,
    Action::GetPrompt,
    Action::ReadResource,
    Action::SeeTemplate,
    Action::Connect,
];

fn is_server_action(action: Action) -> bool {
    matches!(
        action,
        Action::Sample
            | Action::Elicit
            | Action::ListRoots
            | Action::NotifyClient
            | Action::OtherServerMethod
    )
}

/// A row merged with its case; the keys of the row win.
fn over(row: &Case, case: &Case) -> Case {
    // A row with an action replaces all keys about actions.
    let has_action = row.call.is_some()
        || row.read.is_some()
        || row.get.is_some()
        || row.action.is_some()
        || row.launch.is_some()
        || row.deliver.is_some()
        || row.egress.is_some()
        || row.grant.is_some();
    let mut merged = row.clone();
    macro_rules! inherit {
        ($($field:ident)*) => { $(
            if merged.$field.is_none() {
                merged.$field.clone_from(&case.$field);
            }
        )* };
    }
    if !has_action {
        inherit!(call read get action on launch deliver egress grant);
    }
    inherit!(who args hints expect by asks);
    merged.context = row.context.or(&case.context);
    merged
}

fn claims(hints: Hints) -> Claims {
    Claims::from_hints(|name| match name {
        "readOnlyHint" => hints.read_only_hint,
        "destructiveHint" => hints.destructive_hint,
        "idempotentHint" => hints.idempotent_hint,
        "openWorldHint" => hints.open_world_hint,
        _ => None,
    })
}
