//! The strict parse: what passes is one message to every parser, and what is spliced changes
//! nothing else.

use bytes::Bytes;
use portcullis_protocol::codec::{
    Caps, Flaw, Frame, Id, Kind, Object, Text, check, may_have, one_line,
};
use serde_json::Value;

use crate::tree::{Tree, lenient};

const CAPS: Caps =
    Caps { bytes: 1 << 16, depth: 32, nodes: 2_000, keys: 2_000, object_keys: 2_000 };

/// Levels from the top in which keys that differ in case alone are one.
const FOLDED: usize = 3;

pub fn target(bytes: &[u8]) {
    judged(bytes);
    spliced(bytes);
    framed(bytes);
}

/// What [`check`] says of a text is true.
fn judged(text: &[u8]) {
    let tree = Tree::of(text);
    match check(text, Text::Message, CAPS) {
        Ok(counts) => {
            let tree = tree.expect("JSON");
            assert_eq!(counts.keys, tree.keys().len(), "keys are counted wrong");
            assert!(!tree.repeats(FOLDED), "a key stands twice");
            assert!(tree.depth() <= CAPS.depth, "too deep");
            if let Tree::Object(members) = &tree {
                let envelope = ["jsonrpc", "id", "method", "params", "result", "error"];
                for (key, _) in members {
                    assert!(
                        !envelope.contains(&lenient(key).as_str()) || envelope.contains(&&**key)
                    );
                }
            }
            for key in tree.keys() {
                assert!(may_have(text, key), "a key is overlooked");
            }
            let line = one_line(Bytes::copy_from_slice(text));
            assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
            assert_eq!(value(&line), value(text), "one line says something else");
        }
        // No false refusals either.
        Err(Flaw::DuplicateKey) => {
            assert!(tree.is_none_or(|tree| tree.repeats(FOLDED)), "no key stands twice");
        }
        Err(Flaw::NotUtf8) => assert!(std::str::from_utf8(text).is_err()),
        // The tree's parser has the same limit of numbers.
        Err(Flaw::Syntax { .. } | Flaw::NumberOutOfRange { .. }) => {
            assert!(tree.is_none(), "it is JSON");
        }
        Err(Flaw::TooDeep(_)) => assert!(tree.is_none_or(|tree| tree.depth() > CAPS.depth)),
        Err(Flaw::TooLarge(most)) => assert!(text.len() > most),
        Err(Flaw::TooManyKeys(most) | Flaw::CrowdedObject(most)) => {
            assert!(tree.is_none_or(|tree| tree.keys().len() > most));
        }
        Err(Flaw::TooMany(_) | Flaw::MisspelledKey) => {}
        Err(Flaw::Shape(_)) => panic!("the shape is not its matter"),
    }
}

/// Edits of an object touch what they name, and nothing else.
fn spliced(text: &[u8]) {
    if check(text, Text::Value, CAPS).is_err() {
        return;
    }
    let raw = Bytes::copy_from_slice(text);
    let Ok(object) = Object::parse(raw.clone()) else {
        assert!(!matches!(value(text), Value::Object(_)), "it is an object");
        return;
    };
    let Value::Object(members) = value(text) else { panic!("it is not an object") };
    assert!(object.keys().eq(members.keys().map(String::as_str)), "other keys");
    assert_eq!(object.with(&[]), raw);
    for key in object.keys() {
        let own = object.get(key).expect("a value");
        assert_eq!(value(&own), members[key]);
        assert_eq!(object.with(&[(key, Some(&own))]), raw, "a member put in its own place");
        let changed = object.with(&[(key, Some(b"\"changed\""))]);
        let changed = Object::parse(changed).expect("an object");
        assert_eq!(changed.with(&[(key, Some(&own))]), raw, "a change cannot be undone");
        let without = Object::parse(object.with(&[(key, None)])).expect("an object");
        assert!(without.get(key).is_none(), "a member that was taken out is there");
        for other in object.keys().filter(|other| *other != key) {
            assert_eq!(without.get(other), object.get(other), "another member changed");
        }
        assert_eq!(without.keys().count() + 1, object.keys().count());
    }
    if !members.contains_key("added") {
        let more = Object::parse(object.with(&[("added", Some(b"[1.0]"))])).expect("an object");
        assert_eq!(more.get("added").as_deref(), Some(&b"[1.0]"[..]));
        assert_eq!(value(&more.with(&[("added", None)])), value(text));
    }
}

/// A frame says what its text says; with another id or other params, it says the rest unchanged.
fn framed(text: &[u8]) {
    let raw = Bytes::copy_from_slice(text);
    let Ok(frame) = Frame::parse(raw.clone(), CAPS) else { return };
    assert_eq!(frame.raw(), &raw);
    let Value::Object(members) = value(text) else { panic!("it is not an object") };
    assert_eq!(members["jsonrpc"], "2.0");
    let said = |bytes: &Option<Bytes>, key: &str| {
        assert_eq!(bytes.as_ref().map(|bytes| value(bytes)).as_ref(), members.get(key), "{key}");
    };
    match &frame.kind {
        Kind::Request { id, method, params } => {
            assert_eq!(members["method"], method.as_str());
            said(&Some(id.raw().clone()), "id");
            said(params, "params");
            let ours = frame.forward(Some(&Id::from(7)), None);
            let ours = Frame::parse(ours, CAPS).expect("a frame");
            assert!(matches!(&ours.kind, Kind::Request { id, .. } if id.raw() == "7"));
            assert_eq!(ours.forward(Some(id), None), raw, "an id cannot be put back");
            let built = Frame::request(7, method.as_str(), params.as_deref().unwrap_or_default());
            assert_eq!(value(&built), value(ours.raw()), "another request was built");
            swapped(&frame, params.as_ref(), &raw);
        }
        Kind::Notification { method, params } => {
            assert!(!members.contains_key("id"));
            assert_eq!(members["method"], method.as_str());
            said(params, "params");
            swapped(&frame, params.as_ref(), &raw);
        }
        Kind::Result { id, result } => {
            assert!(!members.contains_key("method") && !members.contains_key("error"));
            said(&Some(id.raw().clone()), "id");
            said(&Some(result.clone()), "result");
            let built = value(&Frame::result(id, result));
            assert_eq!((&built["id"], &built["result"]), (&members["id"], &members["result"]));
        }
        Kind::Error { id, error } => {
            assert!(!members.contains_key("method") && !members.contains_key("result"));
            said(&Some(error.clone()), "error");
            let built = value(&Frame::error(id.as_ref(), error));
            assert_eq!(&built["id"], members.get("id").unwrap_or(&Value::Null));
            assert_eq!(built["error"], members["error"]);
        }
    }
}

fn swapped(frame: &Frame, params: Option<&Bytes>, raw: &Bytes) {
    let Some(params) = params else { return };
    let other = Frame::parse(frame.forward(None, Some(b"{\"x\":1e0}")), CAPS).expect("a frame");
    assert_eq!(&other.forward(None, Some(params)), raw, "params cannot be put back");
}

fn value(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("JSON")
}
