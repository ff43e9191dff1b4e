//! An MCP client over streamable HTTP that returns responses unchanged.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::{gate::reqwest_client, in_time};

/// The newest legacy revision.
pub const LEGACY: &str = "2025-11-25";
/// The modern revision.
pub const MODERN: &str = "2026-07-28";

/// A client in one era.
pub struct Agent {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
    pub session: Option<String>,
    modern: bool,
    /// Declared capabilities; in the legacy era, those of its handshake.
    pub abilities: Value,
    id: AtomicU64,
    /// Result of the handshake.
    pub greeting: Value,
}

/// A response.
pub struct Answered {
    pub status: u16,
    pub session: Option<String>,
    /// `WWW-Authenticate`.
    pub challenge: Option<String>,
    pub messages: Vec<Value>,
}

impl Agent {
    /// A client after the legacy handshake.
    ///
    /// # Errors
    /// The status and the error of a refused handshake.
    pub async fn legacy(url: &str, key: Option<&str>) -> Result<Self, (u16, Value)> {
        Self::legacy_of(url, key, LEGACY).await
    }

    /// A client after the legacy handshake with this revision.
    ///
    /// # Errors
    /// The status and the error of a refused handshake.
    pub async fn legacy_of(
        url: &str,
        key: Option<&str>,
        revision: &str,
    ) -> Result<Self, (u16, Value)> {
        Self::new(url, key, false).shake_hands(revision).await
    }

    /// A client after the legacy handshake, without capabilities for server requests.
    pub async fn legacy_without_abilities(url: &str, key: Option<&str>) -> Self {
        let agent = Self { abilities: json!({}), ..Self::new(url, key, false) };
        agent.shake_hands(LEGACY).await.unwrap()
    }

    async fn shake_hands(self, revision: &str) -> Result<Self, (u16, Value)> {
        let mut agent = self;
        let hello = json!({
            "protocolVersion": revision,
            "capabilities": agent.abilities,
            "clientInfo": { "name": "gate", "version": "1" },
        });
        let answered = agent.send(agent.request("initialize", hello)).await;
        let message = answered.messages.last().cloned().unwrap_or_default();
        if message["result"].is_null() {
            return Err((answered.status, message["error"].clone()));
        }
        agent.session = answered.session;
        agent.greeting = message["result"].clone();
        let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(agent.send(ready).await.status, 202);
        Ok(agent)
    }

    /// A client of revision 2026-07-28.
    pub fn modern(url: &str, key: Option<&str>) -> Self {
        Self::new(url, key, true)
    }

    fn new(url: &str, key: Option<&str>, modern: bool) -> Self {
        Self {
            http: reqwest_client(),
            url: url.into(),
            key: key.map(str::to_owned),
            session: None,
            modern,
            abilities: if modern { json!({}) } else { json!({ "sampling": {} }) },
            id: AtomicU64::new(1),
            greeting: Value::Null,
        }
    }

    /// A request with a new id, in the form of the client's era.
    pub fn request(&self, method: &str, mut params: Value) -> Value {
        let id = self.id.fetch_add(1, Ordering::Relaxed);
        if self.modern {
            params["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": MODERN,
                "io.modelcontextprotocol/clientCapabilities": self.abilities,
                "io.modelcontextprotocol/clientInfo": { "name": "gate", "version": "1" },
            });
        }
        json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
    }

    /// Sends one message unchanged, with the headers of the client's era.
    pub async fn send(&self, message: Value) -> Answered {
        let mut post = self
            .http
            .post(&self.url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(key) = &self.key {
            post = post.bearer_auth(key);
        }
        if let Some(session) = &self.session {
            post = post.header("mcp-session-id", session);
        }
        if self.modern {
            post = post
                .header("mcp-protocol-version", MODERN)
                .header("mcp-method", message["method"].as_str().unwrap_or_default());
            let params = &message["params"];
            let name = ["name", "uri", "taskId"].into_iter().find_map(|key| params[key].as_str());
            if let Some(name) = name {
                post = post.header("mcp-name", name);
            }
        } else if let Some(revision) = self.greeting["protocolVersion"].as_str() {
            post = post.header("mcp-protocol-version", revision);
        }
        let exchange = async {
            let reply = post.body(message.to_string()).send().await.unwrap();
            let header = |name| Some(reply.headers().get(name)?.to_str().unwrap().to_owned());
            let session = header("mcp-session-id");
            let challenge = header("www-authenticate");
            let stream = header("content-type").is_some_and(|t| t.starts_with("text/event-stream"));
            let status = reply.status().as_u16();
            let body = reply.text().await.unwrap();
            let messages = if stream {
                events(&body)
            } else if body.is_empty() {
                Vec::new()
            } else {
                vec![serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body:?}"))]
            };
            Answered { status, session, challenge, messages }
        };
        in_time("an answer", exchange).await
    }

    /// Sends a request and returns its result.
    ///
    /// # Errors
    /// The error of the response.
    pub async fn ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        let request = self.request(method, params);
        let id = request["id"].clone();
        let answered = self.send(request).await;
        let answers: Vec<_> =
            answered.messages.iter().filter(|message| message.get("method").is_none()).collect();
        let [answer] = answers.as_slice() else { panic!("one answer expected: {answers:#?}") };
        assert!(answer["id"] == id || answer["id"].is_null(), "{answer:#}");
        match answer.get("result") {
            Some(result) => Ok(result.clone()),
            None => Err(answer["error"].clone()),
        }
    }

    /// Calls a tool.
    ///
    /// # Errors
    /// The error of the response.
    pub async fn call(&self, tool: &str, arguments: Value) -> Result<Value, Value> {
        self.ask("tools/call", json!({ "name": tool, "arguments": arguments })).await
    }

    /// Calls a tool and returns the text of its result.
    pub async fn text(&self, tool: &str, arguments: Value) -> String {
        let result = self.call(tool, arguments).await.unwrap_or_else(|e| panic!("{tool}: {e:#}"));
        assert_ne!(result["isError"], true, "{result:#}");
        result["content"][0]["text"].as_str().expect("text").to_owned()
    }

    /// Calls a tool and returns the stable code of the refusal, which is an error, or a result for
    /// an input error of the tool.
    pub async fn refused(&self, tool: &str, arguments: Value) -> String {
        match self.call(tool, arguments).await {
            Ok(result) => {
                input_error(&result).unwrap_or_else(|| panic!("{tool} was not refused: {result:#}"))
            }
            Err(error) => code_of(&error),
        }
    }

    /// The names in a list.
    pub async fn names(&self, method: &str) -> Vec<String> {
        let result =
            self.ask(method, json!({})).await.unwrap_or_else(|e| panic!("{method}: {e:#}"));
        let (of, name) = match method {
            "tools/list" => ("tools", "name"),
            "prompts/list" => ("prompts", "name"),
            "resources/list" => ("resources", "uri"),
            "resources/templates/list" => ("resourceTemplates", "uriTemplate"),
            other => panic!("{other} is not a list"),
        };
        let entries = result[of].as_array().unwrap_or_else(|| panic!("{result:#}"));
        entries.iter().map(|entry| entry[name].as_str().unwrap().to_owned()).collect()
    }
}

/// The stable code of a refusal. Every refusal also has a decision id.
pub fn code_of(error: &Value) -> String {
    let data = &error["data"];
    assert!(data["decision"].as_str().is_some_and(|id| id.len() == 36), "{error:#}");
    data["code"].as_str().unwrap_or_else(|| panic!("{error:#}")).to_owned()
}

/// The stable code of a result that is a refusal, which has the decision id too.
pub fn input_error(result: &Value) -> Option<String> {
    let data = result["_meta"].get("dev.portcullis/refusal")?;
    assert_eq!(result["isError"], true, "{result:#}");
    assert!(result["content"][0]["text"].is_string(), "{result:#}");
    Some(code_of(&json!({ "data": data })))
}

/// The messages of a stream of server-sent events.
pub fn events(body: &str) -> Vec<Value> {
    let data = body.lines().filter_map(|line| line.strip_prefix("data:"));
    let data = data.map(str::trim).filter(|data| !data.is_empty());
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"))).collect()
}
