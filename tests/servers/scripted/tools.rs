//! What the server offers.

use std::collections::HashSet;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::peer::{Failure, META_SERVER_INFO, MODERN, REVISIONS, Request, TASKS};

/// The resource that can be watched, and the one that cannot be missed.
const WATCHED: &str = "scripted:///watched";

fn capabilities(revision: &str) -> Value {
    let mut capabilities = json!({
        "logging": {},
        "prompts": { "listChanged": true },
        "resources": { "subscribe": true, "listChanged": true },
        "tools": { "listChanged": true },
    });
    // The first revision has completion, but no capability for it.
    if revision > REVISIONS[0] {
        capabilities["completions"] = json!({});
    }
    match revision {
        "2025-11-25" => {
            capabilities["tasks"] =
                json!({ "list": {}, "cancel": {}, "requests": { "tools": { "call": {} } } });
        }
        MODERN => capabilities["extensions"] = json!({ TASKS: {} }),
        _ => {}
    }
    capabilities
}

/// The result of `initialize`.
pub fn greeting(revision: &str) -> Value {
    json!({
        "protocolVersion": revision,
        "capabilities": capabilities(revision),
        "serverInfo": { "name": "scripted", "version": revision },
    })
}

/// The result of `server/discover`.
pub fn discover() -> Value {
    json!({
        "supportedVersions": [MODERN],
        "capabilities": capabilities(MODERN),
        "_meta": { META_SERVER_INFO: { "name": "scripted", "version": MODERN } },
    })
}

pub fn list(revision: &str) -> Value {
    let tool = |name: &str, arguments: &[&str]| {
        let properties: serde_json::Map<_, _> = arguments
            .iter()
            .map(|argument| (argument.to_string(), json!({ "type": "string" })))
            .collect();
        let schema = json!({ "type": "object", "properties": properties, "required": arguments });
        json!({ "name": name, "description": name, "inputSchema": schema })
    };
    let mut tools = vec![
        tool("echo", &["text"]),
        tool("steps", &[]),
        tool("wait", &["mark"]),
        tool("begun", &["mark"]),
        tool("cancelled", &["mark"]),
        tool("touch", &["uri"]),
        tool("renew", &[]),
        tool("log", &["text"]),
        tool("sample", &[]),
        tool("roots", &[]),
    ];
    if revision >= "2025-06-18" {
        tools.push(tool("form", &[]));
    }
    if revision >= "2025-11-25" {
        tools.push(tool("link", &[]));
        tools.push(tool("work", &[]));
    }
    if revision == "2025-11-25"
        && let Some(work) = tools.last_mut()
    {
        work["execution"] = json!({ "taskSupport": "optional" });
    }
    json!({ "tools": tools })
}

pub fn prompts() -> Value {
    let argument = json!({ "name": "name", "required": true });
    json!({ "prompts": [{ "name": "greet", "arguments": [argument] }] })
}

pub fn prompt(params: &Value) -> Result<Value, Failure> {
    let name = params["arguments"]["name"].as_str();
    match (params["name"].as_str(), name) {
        (Some("greet"), Some(name)) => {
            let content = json!({ "type": "text", "text": format!("Greet {name}.") });
            Ok(json!({ "messages": [{ "role": "user", "content": content }] }))
        }
        _ => Err((-32602, "no such prompt".into())),
    }
}

pub fn resources() -> Value {
    json!({ "resources": [{ "uri": WATCHED, "name": "watched" }] })
}

pub fn templates() -> Value {
    json!({ "resourceTemplates": [{ "uriTemplate": "scripted:///by-name/{name}", "name": "by-name" }] })
}

pub fn read(params: &Value, modern: bool) -> Result<Value, Failure> {
    let uri = params["uri"].as_str().unwrap_or_default();
    if uri != WATCHED && !uri.starts_with("scripted:///by-name/") {
        let code = if modern { -32602 } else { -32002 };
        return Err((code, format!("no such resource: {uri}")));
    }
    let text = format!("the text of {uri}");
    Ok(json!({ "contents": [{ "uri": uri, "mimeType": "text/plain", "text": text }] }))
}

pub fn complete(params: &Value) -> Result<Value, Failure> {
    let reference = &params["ref"];
    let known = reference["name"] == "greet"
        || reference["uri"].as_str().is_some_and(|uri| uri.starts_with("scripted:///by-name/"));
    if !known {
        return Err((-32602, format!("nothing to complete for {reference}")));
    }
    let begun = params["argument"]["value"].as_str().unwrap_or_default();
    let values: Vec<_> = ["Ada", "Alan", "Grace"].iter().filter(|n| n.starts_with(begun)).collect();
    let total = values.len();
    Ok(json!({ "completion": { "values": values, "total": total, "hasMore": false } }))
}

fn mark_in(marks: &watch::Sender<HashSet<String>>, mark: &str) {
    marks.send_modify(|marks| {
        marks.insert(mark.to_owned());
    });
}

fn text(text: &str) -> Value {
    json!({ "content": [{ "type": "text", "text": text }], "isError": false })
}

impl Request {
    pub async fn call(&self) -> Result<Value, Failure> {
        let world = &self.connection.world;
        let name = self.text("name")?;
        let known = list(world.revision);
        if !known["tools"].as_array().is_some_and(|tools| tools.iter().any(|t| t["name"] == *name))
        {
            return Err((-32602, format!("no such tool: {name}")));
        }
        match name.as_str() {
            "echo" => Ok(text(&format!("{}: {}", world.revision, self.argument("text")?))),
            "steps" => {
                let token = &self.params["_meta"]["progressToken"];
                if !(token.is_string() || token.is_number()) {
                    return Err((-32602, "no progress token".into()));
                }
                for step in 1..=3 {
                    let params = json!({ "progressToken": token, "progress": step, "total": 3 });
                    self.say("notifications/progress", params);
                }
                Ok(text("three steps"))
            }
            "wait" => {
                let mark = self.argument("mark")?;
                mark_in(&world.begun, &mark);
                let token = &self.params["_meta"]["progressToken"];
                if !token.is_null() {
                    let params = json!({ "progressToken": token, "progress": 1 });
                    self.say("notifications/progress", params);
                }
                self.gone.cancelled().await;
                mark_in(&world.cancelled, &mark);
                Ok(text("nobody hears this"))
            }
            "begun" => {
                self.await_mark(&world.begun, &self.argument("mark")?).await?;
                Ok(text("it has begun"))
            }
            "cancelled" => {
                self.await_mark(&world.cancelled, &self.argument("mark")?).await?;
                Ok(text("it was cancelled"))
            }
            "touch" => {
                world.tell("notifications/resources/updated", Some(&self.argument("uri")?));
                Ok(text("touched"))
            }
            "renew" => {
                world.tell("notifications/tools/list_changed", None);
                Ok(text("renewed"))
            }
            "log" => {
                // Nothing is said where nobody asked for it: in 2026-07-28 that is the rule.
                if let Some(level) = self.log_level() {
                    let data = self.argument("text")?;
                    let params = json!({ "level": level, "logger": "scripted", "data": data });
                    self.say("notifications/message", params);
                }
                Ok(text("logged"))
            }
            "sample" => {
                let content = json!({ "type": "text", "text": "What is the answer?" });
                let params = json!({
                    "messages": [{ "role": "user", "content": content }],
                    "maxTokens": 16,
                });
                let answer = self.input("sampling", "sampling/createMessage", params).await?;
                self.said(answer, "/content/text")
            }
            "roots" => {
                let answer = self.input("roots", "roots/list", json!({})).await?;
                self.said(answer, "/roots/0/uri")
            }
            "form" => {
                let schema = json!({
                    "type": "object",
                    "properties": { "name": { "type": "string" } },
                    "required": ["name"],
                });
                let mut params = json!({ "message": "Who are you?", "requestedSchema": schema });
                if world.revision >= "2025-11-25" {
                    params["mode"] = "form".into();
                }
                let answer = self.input("elicitation", "elicitation/create", params).await?;
                self.said(answer, "/content/name")
            }
            "link" => {
                let mut params = json!({
                    "mode": "url",
                    "message": "Please sign in.",
                    "url": "https://scripted.example/sign-in",
                });
                // 2026-07-28 has no notification that would name it.
                if !world.modern() {
                    params["elicitationId"] = "sign-in".into();
                }
                let answer = self.input("elicitation", "elicitation/create", params).await?;
                self.said(answer, "/action")
            }
            "work" => world.tasks.begin(self),
            other => Err((-32602, format!("no such tool: {other}"))),
        }
    }

    /// Asks the client in the words of the revision: at once, or by a result that the client
    /// answers with the same call again.
    async fn input(&self, capability: &str, method: &str, params: Value) -> Result<Input, Failure> {
        let declared = self.capabilities();
        if declared.get(capability).is_none() {
            return Err((-32603, format!("the client declares no {capability}: {declared}")));
        }
        if !self.connection.world.modern() {
            let answer = self.ask(method, params).await?;
            return Ok(Input::Answered(answer));
        }
        let state = format!("{method} of {}", self.params["name"]);
        let Some(responses) = self.params.get("inputResponses") else {
            let question = json!({ "method": method, "params": params });
            return Ok(Input::Required(json!({
                "resultType": "input_required",
                "inputRequests": { "question": question },
                "requestState": state,
            })));
        };
        if self.params["requestState"] != *state {
            return Err((-32602, format!("not my requestState: {}", self.params)));
        }
        match responses.get("question") {
            Some(answer) => Ok(Input::Answered(answer.clone())),
            None => Err((-32602, format!("no answer to my question: {responses}"))),
        }
    }

    fn said(&self, input: Input, pointer: &str) -> Result<Value, Failure> {
        match input {
            Input::Required(result) => Ok(result),
            Input::Answered(answer) => match answer.pointer(pointer).and_then(Value::as_str) {
                Some(said) => Ok(text(&format!("the client said: {said}"))),
                None => Err((-32603, format!("the client said no {pointer}: {answer}"))),
            },
        }
    }
}

/// What became of a question.
enum Input {
    Answered(Value),
    Required(Value),
}
