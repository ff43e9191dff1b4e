//! The member of `params` that selects the target of a request. Policy decides on it, so it must be
//! the only one: a lenient server could act on a `uri` when policy decided on a `name`.

use portcullis_protocol::{
    codec::Object,
    exchange::Method,
    refusal::{Code, Refusal},
};

/// The members of `params` that select a target, over all methods.
const SELECTORS: [&str; 4] = ["name", "uri", "ref", "taskId"];

/// Refuses `params` with a member that selects the target of another method. Methods that MCP does
/// not define are not checked.
///
/// # Errors
/// `invalid-params`.
pub fn selects_once(method: &Method, params: &Object) -> Result<(), Refusal> {
    let own = match method.as_str() {
        Method::TOOLS_CALL | Method::PROMPTS_GET => "name",
        Method::RESOURCES_READ | Method::SUBSCRIBE | Method::UNSUBSCRIBE => "uri",
        Method::COMPLETE => "ref",
        task if Method::TASK.contains(&task) => "taskId",
        _ => return Ok(()),
    };
    let is_other = |key: &str| key != own && SELECTORS.contains(&key);
    match params.keys().find(|key| is_other(key)) {
        Some(other) => {
            Err(invalid(format!("`{method}` does not take `{other}`: its target is `{own}`")))
        }
        None => Ok(()),
    }
}

/// Target of a `completion/complete`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// A prompt, by its name.
    Prompt(String),
    /// A resource or a template, by its URI.
    Resource(String),
}

/// Reads the `ref` of a `completion/complete`. It may only have the members of its `type` (MCP
/// schema, `PromptReference` and `ResourceTemplateReference`; `title` since 2025-06-18).
///
/// # Errors
/// `invalid-params`.
pub(super) fn reference(object: &Object) -> Result<Reference, Refusal> {
    let (members, key): (&[&str], _) = match object.string("type").as_deref() {
        Some("ref/prompt") => (&["type", "name", "title"], "name"),
        Some("ref/resource") => (&["type", "uri"], "uri"),
        _ => return Err(invalid("`ref.type` must be `ref/prompt` or `ref/resource`".into())),
    };
    if object.keys().any(|key| !members.contains(&key)) {
        let members = members.join("`, `");
        return Err(invalid(format!("a `ref` of this type may only have the members `{members}`")));
    }
    let selected =
        object.string(key).ok_or_else(|| invalid(format!("`ref.{key}` must be a string")))?;
    Ok(if key == "uri" { Reference::Resource(selected) } else { Reference::Prompt(selected) })
}

fn invalid(message: String) -> Refusal {
    Refusal::new(Code::InvalidParams, message)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn object(text: &'static str) -> Object {
        Object::parse(Bytes::from_static(text.as_bytes())).unwrap()
    }

    #[test]
    fn references_allow_only_members_of_their_type() {
        let prompt = |name: &str| Ok(Reference::Prompt(name.to_owned()));
        let resource = |uri: &str| Ok(Reference::Resource(uri.to_owned()));
        for (text, read) in [
            (r#"{"type":"ref/prompt","name":"a"}"#, prompt("a")),
            (r#"{"type":"ref/prompt","name":"a","title":"A"}"#, prompt("a")),
            (r#"{"type":"ref/resource","uri":"x://{id}"}"#, resource("x://{id}")),
            (r#"{"type":"ref/prompt","name":"a","uri":"x://1"}"#, Err(())),
            (r#"{"type":"ref/resource","uri":"x://1","name":"a"}"#, Err(())),
            (r#"{"type":"ref/resource","uri":"x://1","title":"A"}"#, Err(())),
            (r#"{"type":"ref/prompt","name":"a","arguments":{}}"#, Err(())),
            (r#"{"type":"ref/prompt","name":7}"#, Err(())),
            (r#"{"type":"ref/prompt"}"#, Err(())),
            (r#"{"type":"ref/tool","name":"a"}"#, Err(())),
            (r#"{"name":"a"}"#, Err(())),
        ] {
            let got = reference(&object(text)).map_err(|refusal| {
                assert_eq!(refusal.code, Code::InvalidParams, "{text}");
            });
            assert_eq!(got, read, "{text}");
        }
    }

    #[test]
    fn params_have_only_one_selector() {
        for (method, text, passes) in [
            ("tools/call", r#"{"name":"a","arguments":{"uri":1},"_meta":{"uri":1}}"#, true),
            ("tools/call", r#"{"name":"a","uri":"x://1"}"#, false),
            ("tools/call", r#"{"name":"a","ref":{}}"#, false),
            ("prompts/get", r#"{"name":"a","taskId":"1"}"#, false),
            ("resources/read", r#"{"uri":"x://1","name":"a"}"#, false),
            ("resources/subscribe", r#"{"uri":"x://1"}"#, true),
            ("resources/subscribe", r#"{"uri":"x://1","ref":{}}"#, false),
            ("tasks/get", r#"{"taskId":"1"}"#, true),
            ("tasks/cancel", r#"{"taskId":"1","name":"a"}"#, false),
            ("completion/complete", r#"{"ref":{},"argument":{"name":"a"},"context":{}}"#, true),
            ("completion/complete", r#"{"ref":{},"name":"a"}"#, false),
            ("vendor/own", r#"{"name":"a","uri":"x://1"}"#, true),
        ] {
            let checked = selects_once(&Method::new(method), &object(text));
            assert_eq!(checked.is_ok(), passes, "{method} {text}");
        }
    }
}
