//! Message of a case, as the chain would pass it to a plugin.

use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::{Value, json};
use serde_saphyr::Spanned;

use super::file::{Case, From, PayloadKind};
use portcullis_config::Limits;
use portcullis_plugin_host::{Direction, Message, Phase, Target};
use portcullis_policy_tools::CasePrincipal;
use portcullis_protocol::{
    codec::{self, Caps, Flaw, Object, Text},
    identity::{Principal, PrincipalKind},
};

const WHAT: &str = "give one of `call: SERVER/TOOL`, `get: SERVER/PROMPT`, `read: SERVER/URI` and \
                    `do: METHOD` with `on: SERVER`";

/// Message of a case; `nth` determines the id of its exchange.
///
/// # Errors
/// The reason why the case does not define a message.
pub fn message(
    case: &Case,
    principals: &IndexMap<String, Spanned<CasePrincipal>>,
    nth: usize,
) -> Result<Message, String> {
    let (event, server, target) = aimed(case)?;
    let (phase, is_error, payload) = payload(case, &target)?;
    let principal = match &case.who {
        Some(who) => party(&who.value, principals)?,
        None => principal_of(&Principal::anonymous()),
    };
    let direction = match case.from {
        Some(From::Server) => Direction::ServerToClient,
        Some(From::Client) | None => Direction::ClientToServer,
    };
    Ok(Message {
        exchange: case
            .exchange
            .clone()
            .unwrap_or_else(|| format!("00000000-0000-7000-8000-{nth:012}")),
        event,
        phase,
        direction,
        server,
        target,
        principal,
        labels: case.labels.clone().unwrap_or_default(),
        session_prefix: case.session.clone(),
        is_error,
        payload,
    })
}

/// Method, server and target of a case.
fn aimed(case: &Case) -> Result<(String, Option<String>, Target), String> {
    let named = [
        (&case.call, "tools/call", Target::Tool as fn(String) -> Target),
        (&case.get, "prompts/get", Target::Prompt),
        (&case.read, "resources/read", Target::Resource),
    ];
    let mut named = named.into_iter().filter_map(|(what, method, target)| {
        what.as_ref().map(|what| (what.value.as_str(), method, target))
    });
    match (named.next(), named.next(), &case.method) {
        (Some((what, method, target)), None, None) if case.on.is_none() => {
            let (server, name) = what
                .split_once('/')
                .filter(|(server, name)| !server.is_empty() && !name.is_empty())
                .ok_or_else(|| format!("`{what}` is not SERVER/NAME: {WHAT}"))?;
            Ok((method.to_owned(), Some(server.to_owned()), target(name.to_owned())))
        }
        (None, None, Some(method)) => {
            let server = case.on.as_ref().map(|server| server.value.clone());
            Ok((method.value.clone(), server, Target::None))
        }
        (None, None, None) => Err(format!("the case has no message: {WHAT}")),
        _ => Err(format!("the case has two messages: {WHAT}")),
    }
}

/// Phase of the payload, whether it is an error, and its JSON text.
fn payload(case: &Case, target: &Target) -> Result<(Phase, bool, String), String> {
    let named = |name: &String| match &case.args {
        Some(args) => json!({ "name": name, "arguments": args }),
        None => json!({ "name": name }),
    };
    let present = [
        case.args.is_some(),
        case.params.is_some(),
        case.result.is_some(),
        case.text.is_some(),
        case.error.is_some(),
        case.payload.is_some(),
    ];
    if present.into_iter().filter(|present| *present).count() > 1 {
        return Err("give one of `args`, `params`, `result`, `text`, `error` and `payload`".into());
    }
    if case.phase.is_some() && case.payload.is_none() {
        return Err("`phase` goes with `payload` alone; `params`, `result` and `error` say it \
                    themselves"
            .into());
    }
    let object = |map: &serde_json::Map<String, Value>| Value::Object(map.clone()).to_string();
    if let Some(payload) = &case.payload {
        let (phase, is_error) = match case.phase.as_ref().map(|half| half.value) {
            Some(PayloadKind::Request) => (Phase::Request, false),
            Some(PayloadKind::Response) => (Phase::Response, false),
            Some(PayloadKind::Error) => (Phase::Response, true),
            None => return Err("say `phase: request`, `response` or `error`".into()),
        };
        sound(&payload.value, phase, is_error).map_err(|flaw| {
            format!("`payload` is not the text of a JSON object that the proxy takes: {flaw}")
        })?;
        return Ok((phase, is_error, payload.value.clone()));
    }
    if let Some(result) = &case.result {
        return Ok((Phase::Response, false, object(result)));
    }
    if let Some(error) = &case.error {
        return Ok((Phase::Response, true, object(error)));
    }
    if let Some(text) = &case.text {
        let block = json!({ "type": "text", "text": text });
        let result = match target {
            Target::Resource(uri) => json!({ "contents": [{ "uri": uri, "text": text }] }),
            Target::Prompt(_) => json!({ "messages": [{ "role": "user", "content": block }] }),
            Target::Tool(_) | Target::None => json!({ "content": [block] }),
        };
        return Ok((Phase::Response, false, result.to_string()));
    }
    if let Some(params) = &case.params {
        return Ok((Phase::Request, false, object(params)));
    }
    let params = match target {
        Target::Tool(name) | Target::Prompt(name) => named(name),
        Target::Resource(uri) if case.args.is_none() => json!({ "uri": uri }),
        Target::None if case.args.is_none() => json!({}),
        _ => return Err("`args` go with `call` and `get`: write `params`".into()),
    };
    Ok((Phase::Request, false, params.to_string()))
}

/// Checks that the proxy would accept a payload.
///
/// # Errors
/// The reason why it would not.
pub fn sound(payload: &str, phase: Phase, is_error: bool) -> Result<(), Flaw> {
    let (what, caps) = held_to(phase, is_error);
    codec::check(payload.as_bytes(), what, caps)?;
    Object::parse(Bytes::copy_from_slice(payload.as_bytes())).map(drop)
}

/// Limits of a payload in a proxy without configured limits.
pub fn held_to(phase: Phase, is_error: bool) -> (Text, Caps) {
    let limits = Limits::default();
    match (phase, is_error) {
        (Phase::Request, _) => (Text::Params, limits.request_caps()),
        (Phase::Response, true) => (Text::Error, limits.response_caps()),
        (Phase::Response, false) => (Text::Result, limits.response_caps()),
    }
}

/// Text of the first block of a result of a tool, a prompt or a resource.
pub fn first_text(payload: &str) -> Option<String> {
    let result: Value = serde_json::from_str(payload).ok()?;
    ["/content/0/text", "/contents/0/text", "/messages/0/content/text"]
        .iter()
        .find_map(|pointer| result.pointer(pointer)?.as_str().map(str::to_owned))
}

fn party(
    word: &str,
    principals: &IndexMap<String, Spanned<CasePrincipal>>,
) -> Result<portcullis_plugin_host::Principal, String> {
    let who = match principals.get(word) {
        Some(who) => who.value.clone(),
        None => CasePrincipal::parse(word).map_err(|_| {
            format!(
                "there is no principal `{word}`: name it under `principals`, or write `client:NAME`, \
                 `local:USER` or `anonymous`"
            )
        })?,
    };
    let client = who.principal().ok_or_else(|| {
        format!(
            "`{word}` is not a client: a server's message has `from: server` and the client that it \
             is for"
        )
    })?;
    Ok(principal_of(&client))
}

fn principal_of(client: &Principal) -> portcullis_plugin_host::Principal {
    let kind = match &client.kind {
        PrincipalKind::Client(_) => portcullis_plugin_host::PrincipalKind::Client,
        PrincipalKind::Local { .. } => portcullis_plugin_host::PrincipalKind::Local,
        PrincipalKind::Anonymous => portcullis_plugin_host::PrincipalKind::Anonymous,
    };
    portcullis_plugin_host::Principal {
        name: client.name(),
        kind,
        groups: client.groups.iter().map(ToString::to_string).collect(),
    }
}
