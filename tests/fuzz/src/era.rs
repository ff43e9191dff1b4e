//! Translation between the eras: what goes there and back again has lost nothing.

use bytes::Bytes;
use portcullis_protocol::{
    codec::{
        Caps, Object, Text, check,
        era::{self, ClientDetails, ResultKind},
    },
    exchange::{Method, Revision},
};
use serde_json::Value;

const CAPS: Caps =
    Caps { bytes: 1 << 16, depth: 32, nodes: 2_000, keys: 2_000, object_keys: 2_000 };
/// With room for what a translation adds.
const ROOMY: Caps =
    Caps { bytes: 1 << 17, depth: 40, nodes: 3_000, keys: 3_000, object_keys: 3_000 };
const LEGACY: Revision = Revision::LATEST_LEGACY;
const MODERN: Revision = Revision::LATEST_MODERN;

/// The first byte picks a method; the rest is a text.
pub fn target(bytes: &[u8]) {
    let Some((&pick, text)) = bytes.split_first() else { return };
    let method = match pick % 4 {
        0 => Method::TOOLS_CALL,
        1 => Method::RESOURCES_READ,
        2 => Method::PROMPTS_GET,
        _ => "tools/list",
    };
    let method = Method::new(method);
    let text = Bytes::copy_from_slice(text);
    for revision in [LEGACY, MODERN] {
        assert_eq!(era::params(&text, &method, &client_details(revision), revision), None);
        assert_eq!(era::result(text.clone(), &method, revision, revision).as_ref(), Ok(&text));
        assert_eq!(era::error(text.clone(), &method, revision, revision), text);
    }
    if check(&text, Text::Params, CAPS).is_ok() {
        params(&text, &method);
    }
    if check(&text, Text::Result, CAPS).is_ok() {
        results(&text, &method);
    }
    if check(&text, Text::Error, CAPS).is_ok() {
        errors(&text, &method);
    }
}

fn client_details(revision: Revision) -> ClientDetails {
    ClientDetails {
        revision,
        capabilities: Bytes::from_static(b"{\"roots\":{\"x\" : 1.0}}"),
        info: None,
        level: Some("debug"),
    }
}

/// A legacy client's params, there and back.
fn params(text: &Bytes, method: &Method) {
    let Some(modern) = era::params(text, method, &client_details(LEGACY), MODERN) else { return };
    check(&modern, Text::Params, ROOMY).expect("params that pass");
    // Who cannot have been asked has not answered.
    kept(text, &modern, &["_meta", "inputResponses", "requestState"]);
    let asked = Object::parse(modern.clone()).expect("an object");
    assert!(asked.get("inputResponses").is_none() && asked.get("requestState").is_none());
    let Value::Object(said) = &value(&modern)["_meta"] else { panic!("no `_meta`") };
    assert_eq!(said["io.modelcontextprotocol/clientCapabilities"]["roots"]["x"], 1.0);
    let legacy = era::params(&modern, method, &client_details(MODERN), LEGACY)
        .expect("params of the other era");
    // A modern client does not request a task.
    kept(text, &legacy, &["_meta", "inputResponses", "requestState", "task"]);
    let meta = |text: &[u8]| match value(text) {
        Value::Object(mut members) => match members.remove("_meta") {
            Some(Value::Object(meta)) => meta,
            _ => Default::default(),
        },
        _ => Default::default(),
    };
    let (mut before, after) = (meta(text), meta(&legacy));
    before.retain(|key, _| !is_modern(key));
    assert_eq!(before, after, "`_meta` lost something");
}

/// A legacy server's result, there and back.
fn results(text: &Bytes, method: &Method) {
    let Ok(modern) = era::result(text.clone(), method, LEGACY, MODERN) else { return };
    check(&modern, Text::Result, ROOMY).expect("a result that passes");
    kept(text, &modern, &MODERN_RESULT);
    let created = Object::parse(modern.clone())
        .is_ok_and(|result| ResultKind::of(&result) == ResultKind::Task);
    if created {
        assert_eq!((&modern, method.as_str()), (text, Method::TOOLS_CALL), "a changed task");
        return;
    }
    // Every other result of a legacy server is complete, whatever it calls it.
    let legacy = era::result(modern, method, MODERN, LEGACY).expect("a complete result");
    kept(text, &legacy, &MODERN_RESULT);
    if let (Ok(object), Ok(Value::Object(_))) =
        (Object::parse(text.clone()), serde_json::from_slice(text))
    {
        let complete = ResultKind::of(&object) == ResultKind::Complete;
        let passed = era::result(text.clone(), method, MODERN, LEGACY);
        assert_eq!(passed.is_ok(), complete, "a question passed for an answer");
    }
}

fn errors(text: &Bytes, method: &Method) {
    let modern = era::error(text.clone(), method, LEGACY, MODERN);
    kept(text, &modern, &["code"]);
}

/// Members of a result that are one era's alone.
const MODERN_RESULT: [&str; 3] = ["resultType", "ttlMs", "cacheScope"];

fn is_modern(key: &str) -> bool {
    ["protocolVersion", "clientCapabilities", "clientInfo", "logLevel"]
        .iter()
        .any(|name| key == format!("io.modelcontextprotocol/{name}"))
}

/// Every member of `before` but `own` stands in `after`, byte for byte and in the same order; and
/// nothing new does.
fn kept(before: &Bytes, after: &Bytes, own: &[&str]) {
    let Ok(before) = Object::parse(before.clone()) else {
        assert_eq!(before, after, "what is not an object changed");
        return;
    };
    let after = Object::parse(after.clone()).expect("an object");
    let rest = |object: &Object| -> Vec<String> {
        object.keys().filter(|key| !own.contains(key)).map(str::to_owned).collect()
    };
    assert_eq!(rest(&before), rest(&after), "other members");
    for key in rest(&before) {
        assert_eq!(before.get(&key), after.get(&key), "{key} changed");
    }
}

fn value(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("JSON")
}
