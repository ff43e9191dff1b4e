//! One exchange for each thing that the protocol can do.

use serde_json::{Value, json};

use crate::support::{
    client::{Client, MODERN, Wrong, finish},
    new_mark,
};

const WATCHED: &str = "scripted:///watched";
const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// A client at one of the servers that its endpoint has.
pub struct At<'c> {
    pub client: &'c Client,
    /// What the proxy puts before the names of that server.
    pub prefix: &'c str,
}

impl At<'_> {
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl std::ops::Deref for At<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client
    }
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    Tools,
    Resources,
    Prompts,
    Completion,
    Progress,
    Cancel,
    Log,
    Subscribe,
    Changes,
    Sample,
    Elicit,
    Roots,
    Tasks,
}

/// What a cell must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Works,
    /// One of the revisions does not have it.
    Absent,
    /// Both have it, and one cannot be said in the words of the other.
    Impossible,
}

impl Feature {
    pub const ALL: [Self; 13] = [
        Self::Tools,
        Self::Resources,
        Self::Prompts,
        Self::Completion,
        Self::Progress,
        Self::Cancel,
        Self::Log,
        Self::Subscribe,
        Self::Changes,
        Self::Sample,
        Self::Elicit,
        Self::Roots,
        Self::Tasks,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Resources => "resources",
            Self::Prompts => "prompts",
            Self::Completion => "completion",
            Self::Progress => "progress",
            Self::Cancel => "cancel",
            Self::Log => "log",
            Self::Subscribe => "subscribe",
            Self::Changes => "list changes",
            Self::Sample => "sample",
            Self::Elicit => "elicit",
            Self::Roots => "roots",
            Self::Tasks => "tasks",
        }
    }

    /// What its exchange is.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Tools => "list tools, call one, call one that there is not",
            Self::Resources => "list resources and templates, read of both, read what there is not",
            Self::Prompts => "list prompts, get one",
            Self::Completion => "complete an argument of a prompt and of a resource template",
            Self::Progress => "a call's progress arrives in order under the client's token",
            Self::Cancel => "a call that is cancelled ends at the server",
            Self::Log => "a log message arrives at the level that the client set",
            Self::Subscribe => "a change of a resource reaches who watches it",
            Self::Changes => "a change of the list of tools reaches the client",
            Self::Sample => "the server has the client sample its model",
            Self::Elicit => {
                "the server has the client ask its user, by form, and by URL where both have it"
            }
            Self::Roots => "the server asks for the client's roots",
            Self::Tasks => {
                "a call becomes a task; its state, its questions, its result; another is cancelled"
            }
        }
    }

    /// Whether it names its server where many are behind one endpoint: these servers all have the
    /// same resources, and a changed list is everybody's.
    pub fn names_a_server(self) -> bool {
        !matches!(self, Self::Resources | Self::Completion | Self::Subscribe | Self::Changes)
    }

    /// The first revision that has it.
    fn since(self) -> &'static str {
        match self {
            Self::Elicit => "2025-06-18",
            Self::Tasks => "2025-11-25",
            _ => "2024-11-05",
        }
    }

    pub fn expected(self, client: &str, server: &str) -> Expected {
        if client < self.since() || server < self.since() {
            return Expected::Absent;
        }
        if self == Self::Tasks && client != server {
            return Expected::Impossible;
        }
        Expected::Works
    }
}

/// Does what the feature is about, with the server of that revision.
pub async fn exchange(client: &At<'_>, server: &str, feature: Feature) -> Result<(), Wrong> {
    match feature {
        Feature::Tools => tools(client, server).await,
        Feature::Resources => resources(client).await,
        Feature::Prompts => prompts(client).await,
        Feature::Completion => completion(client).await,
        Feature::Progress => progress(client).await,
        Feature::Cancel => cancel(client).await,
        Feature::Log => log(client).await,
        Feature::Subscribe => subscribe(client).await,
        Feature::Changes => changes(client).await,
        Feature::Sample => {
            let said = format!("the client said: 42 in {}", client.revision);
            call(client, "sample", json!({}), &said).await
        }
        Feature::Elicit => elicit(client, server).await,
        Feature::Roots => {
            let said = format!("the client said: file:///{}", client.revision);
            call(client, "roots", json!({}), &said).await
        }
        Feature::Tasks if client.revision != server => {
            // What can be done is done at once.
            call(client, "work", json!({}), "work done for nobody").await
        }
        Feature::Tasks if server == MODERN => extension_tasks(client).await,
        Feature::Tasks => core_tasks(client).await,
    }
}

/// Fails with what came in place of what should have.
fn expect(what: &str, came: &Value, expected: impl Into<Value>) -> Result<(), Wrong> {
    let expected = expected.into();
    if *came == expected { Ok(()) } else { Err(format!("{what}: {came} instead of {expected}")) }
}

fn called(result: &Value, text: &str) -> Result<(), Wrong> {
    expect("the tool's text", &result["content"][0]["text"], text)
        .map_err(|wrong| format!("{wrong} in {result}"))
}

async fn call(client: &At<'_>, tool: &str, arguments: Value, text: &str) -> Result<(), Wrong> {
    let params = json!({ "name": client.named(tool), "arguments": arguments });
    let result = client.ask("tools/call", params).await;
    called(&result.map_err(|wrong| format!("{tool}: {wrong}"))?, text)
}

fn names(result: &Value, list: &str, name: &str) -> Vec<String> {
    let entries = result[list].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry[name].as_str().map(str::to_owned)).collect()
}

async fn tools(client: &At<'_>, server: &str) -> Result<(), Wrong> {
    let listed = client.ask("tools/list", json!({})).await?;
    let tools = names(&listed, "tools", "name");
    if !tools.contains(&client.named("echo")) {
        return Err(format!("no `echo` among {tools:?}"));
    }
    let text = json!({ "text": "héllo" });
    call(client, "echo", text, &format!("{server}: héllo")).await?;
    let none = json!({ "name": client.named("none"), "arguments": {} });
    match client.ask("tools/call", none).await {
        Ok(result) => Err(format!("a tool that there is not: {result}")),
        Err(_) => Ok(()),
    }
}

async fn resources(client: &At<'_>) -> Result<(), Wrong> {
    let listed = client.ask("resources/list", json!({})).await?;
    expect("resources", &names(&listed, "resources", "uri").into(), json!([WATCHED]))?;
    let listed = client.ask("resources/templates/list", json!({})).await?;
    let templates = names(&listed, "resourceTemplates", "uriTemplate");
    expect("templates", &templates.into(), json!(["scripted:///by-name/{name}"]))?;
    for uri in [WATCHED, "scripted:///by-name/Ada"] {
        let read = client.ask("resources/read", json!({ "uri": uri })).await?;
        expect("the text", &read["contents"][0]["text"], format!("the text of {uri}"))?;
    }
    let none = client.ask("resources/read", json!({ "uri": "scripted:///none" })).await;
    match none {
        Ok(result) => Err(format!("a resource that there is not: {result}")),
        Err(_) => Ok(()),
    }
}

async fn prompts(client: &At<'_>) -> Result<(), Wrong> {
    let listed = client.ask("prompts/list", json!({})).await?;
    let prompts = names(&listed, "prompts", "name");
    if !prompts.contains(&client.named("greet")) {
        return Err(format!("no `greet` among {prompts:?}"));
    }
    let params = json!({ "name": client.named("greet"), "arguments": { "name": "Ada" } });
    let prompt = client.ask("prompts/get", params).await?;
    expect("the prompt", &prompt["messages"][0]["content"]["text"], "Greet Ada.")
}

async fn completion(client: &At<'_>) -> Result<(), Wrong> {
    for reference in [
        json!({ "type": "ref/prompt", "name": client.named("greet") }),
        json!({ "type": "ref/resource", "uri": "scripted:///by-name/{name}" }),
    ] {
        let argument = json!({ "name": "name", "value": "A" });
        let params = json!({ "ref": reference, "argument": argument });
        let completed = client.ask("completion/complete", params).await?;
        expect("the values", &completed["completion"]["values"], json!(["Ada", "Alan"]))?;
    }
    Ok(())
}

async fn progress(client: &At<'_>) -> Result<(), Wrong> {
    let token = new_mark();
    let params = json!({ "name": client.named("steps"), "arguments": {}, "_meta": { "progressToken": token } });
    called(&client.ask("tools/call", params).await?, "three steps")?;
    let of_this = |message: &Value| {
        message["method"] == "notifications/progress"
            && message["params"]["progressToken"] == *token
    };
    client
        .heard("the last step", |message| of_this(message) && message["params"]["progress"] == 3)
        .await?;
    let steps: Vec<_> = client.all_heard().into_iter().filter(of_this).collect();
    let steps: Vec<_> = steps.iter().map(|step| step["params"]["progress"].clone()).collect();
    expect("the steps", &steps.into(), json!([1, 2, 3]))
}

async fn cancel(client: &At<'_>) -> Result<(), Wrong> {
    let mark = json!({ "mark": new_mark() });
    let params = json!({ "name": client.named("wait"), "arguments": mark });
    let (id, answer) = client.begin("tools/call", params).await?;
    call(client, "begun", mark.clone(), "it has begun").await?;
    client.cancel(id).await?;
    call(client, "cancelled", mark, "it was cancelled").await?;
    drop(answer);
    Ok(())
}

async fn log(client: &At<'_>) -> Result<(), Wrong> {
    let text = new_mark();
    let mut params = json!({ "name": client.named("log"), "arguments": { "text": text } });
    if client.revision == MODERN {
        params["_meta"] = json!({ "io.modelcontextprotocol/logLevel": "warning" });
    } else {
        client.ask("logging/setLevel", json!({ "level": "warning" })).await?;
    }
    called(&client.ask("tools/call", params).await?, "logged")?;
    let message = client
        .heard("the log message", |message| {
            message["method"] == "notifications/message" && message["params"]["data"] == *text
        })
        .await?;
    expect("the level", &message["params"]["level"], "warning")
}

/// Opens a stream for these and waits for its acknowledgement.
async fn listen(client: &At<'_>, notifications: Value) -> Result<u64, Wrong> {
    let params = json!({ "notifications": notifications });
    let (id, answer) = client.begin("subscriptions/listen", params).await?;
    let acknowledged = client.heard("the acknowledgement", |message| {
        message["method"] == "notifications/subscriptions/acknowledged"
            && message["params"]["_meta"][SUBSCRIPTION] == id
    });
    let failed = async {
        match finish("subscriptions/listen", answer).await {
            Ok(result) => format!("the stream ended at once: {result}"),
            Err(wrong) => wrong,
        }
    };
    // Ahead of the patience with the acknowledgement, an error ends the wait.
    tokio::select! {
        biased;
        acknowledged = acknowledged => {
            let message = acknowledged?;
            expect("what is acknowledged", &message["params"]["notifications"], notifications)?;
            Ok(id)
        }
        wrong = failed => Err(wrong),
    }
}

async fn subscribe(client: &At<'_>) -> Result<(), Wrong> {
    let modern = client.revision == MODERN;
    let subscription = if modern {
        Some(listen(client, json!({ "resourceSubscriptions": [WATCHED] })).await?)
    } else {
        client.ask("resources/subscribe", json!({ "uri": WATCHED })).await?;
        None
    };
    call(client, "touch", json!({ "uri": WATCHED }), "touched").await?;
    let update = client
        .heard("the update", |message| {
            message["method"] == "notifications/resources/updated"
                && message["params"]["uri"] == WATCHED
        })
        .await?;
    match subscription {
        Some(id) => {
            expect("the subscription", &update["params"]["_meta"][SUBSCRIPTION], id)?;
            client.cancel(id).await
        }
        None => client.ask("resources/unsubscribe", json!({ "uri": WATCHED })).await.map(drop),
    }
}

async fn changes(client: &At<'_>) -> Result<(), Wrong> {
    let subscription = if client.revision == MODERN {
        Some(listen(client, json!({ "toolsListChanged": true })).await?)
    } else {
        None
    };
    call(client, "renew", json!({}), "renewed").await?;
    let of_lists = |message: &Value| message["method"] == "notifications/tools/list_changed";
    let changed = client.heard("the change", of_lists).await?;
    match subscription {
        Some(id) => {
            expect("the subscription", &changed["params"]["_meta"][SUBSCRIPTION], id)?;
            client.cancel(id).await
        }
        None => Ok(()),
    }
}

async fn elicit(client: &At<'_>, server: &str) -> Result<(), Wrong> {
    call(client, "form", json!({}), "the client said: Ada").await?;
    if client.revision >= "2025-11-25" && server >= "2025-11-25" {
        call(client, "link", json!({}), "the client said: accept").await?;
    }
    Ok(())
}

/// Tasks as 2025-11-25 has them: the client wants one.
async fn core_tasks(client: &At<'_>) -> Result<(), Wrong> {
    if client.greeting["capabilities"]["tasks"]["requests"]["tools"]["call"].is_null() {
        return Err(format!("`tasks` is not offered: {}", client.greeting));
    }
    let begin = json!({ "name": client.named("work"), "arguments": {}, "task": { "ttl": 60_000 } });
    let task = client.ask("tools/call", begin.clone()).await?;
    let id = &task["task"]["taskId"];
    expect("the new task", &task["task"]["status"], "working")?;
    for status in ["working", "completed"] {
        let task = client.ask("tasks/get", json!({ "taskId": id })).await?;
        expect("the task's status", &task["status"], status)?;
        expect("the task's id", &task["taskId"], id.clone())?;
    }
    let result = client.ask("tasks/result", json!({ "taskId": id })).await?;
    called(&result, "work done for nobody")?;
    let related = &result["_meta"]["io.modelcontextprotocol/related-task"]["taskId"];
    expect("the related task", related, id.clone())?;
    let listed = client.ask("tasks/list", json!({})).await?;
    if !names(&listed, "tasks", "taskId").iter().any(|listed| id == listed) {
        return Err(format!("{id} is not in the list: {listed}"));
    }
    let task = client.ask("tools/call", begin).await?;
    let id = &task["task"]["taskId"];
    let cancelled = client.ask("tasks/cancel", json!({ "taskId": id })).await?;
    expect("the cancelled task", &cancelled["status"], "cancelled")
}

/// Tasks as the extension to 2026-07-28 has them: the server makes one.
async fn extension_tasks(client: &At<'_>) -> Result<(), Wrong> {
    let begin = json!({ "name": client.named("work"), "arguments": {} });
    let task = client.ask("tools/call", begin.clone()).await?;
    expect("the kind of result", &task["resultType"], "task")?;
    let id = &task["taskId"];
    for status in ["working", "input_required"] {
        let task = client.ask("tasks/get", json!({ "taskId": id })).await?;
        expect("the task's status", &task["status"], status)?;
        expect("the task's id", &task["taskId"], id.clone())?;
        if status == "input_required" {
            let question = &task["inputRequests"]["who"]["method"];
            expect("the question", question, "elicitation/create")?;
        }
    }
    let content = json!({ "action": "accept", "content": { "name": "Ada" } });
    let update = json!({ "taskId": id, "inputResponses": { "who": content } });
    client.ask("tasks/update", update).await?;
    let done = client.ask("tasks/get", json!({ "taskId": id })).await?;
    expect("the task's status", &done["status"], "completed")?;
    called(&done["result"], "work done for Ada")?;
    let task = client.ask("tools/call", begin).await?;
    let id = &task["taskId"];
    client.ask("tasks/cancel", json!({ "taskId": id })).await?;
    let cancelled = client.ask("tasks/get", json!({ "taskId": id })).await?;
    expect("the cancelled task", &cancelled["status"], "cancelled")
}
