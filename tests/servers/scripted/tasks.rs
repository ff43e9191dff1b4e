//! Tasks, of 2025-11-25's core and of 2026-07-28's extension. A task is done when it has been asked
//! for a second time, so that nothing depends on a clock.

use std::{collections::BTreeMap, sync::Mutex};

use serde_json::{Value, json};

use crate::peer::{Failure, Request, TASKS, lock, unknown};

const STAMP: &str = "2026-08-01T12:00:00Z";

#[derive(Default)]
pub struct Tasks {
    tasks: Mutex<BTreeMap<String, Task>>,
}

#[derive(Default)]
struct Task {
    polls: u64,
    name: Option<String>,
    cancelled: bool,
}

impl Task {
    fn status(&self, modern: bool) -> &'static str {
        match self.polls {
            _ if self.cancelled => "cancelled",
            0 | 1 => "working",
            // The extension's task has a question before it can go on.
            _ if modern && self.name.is_none() => "input_required",
            _ => "completed",
        }
    }

    fn shown(&self, id: &str, modern: bool) -> Value {
        let mut shown = json!({
            "taskId": id,
            "status": self.status(modern),
            "createdAt": STAMP,
            "lastUpdatedAt": STAMP,
        });
        let (ttl, interval) =
            if modern { ("ttlMs", "pollIntervalMs") } else { ("ttl", "pollInterval") };
        shown[ttl] = 60_000.into();
        shown[interval] = 10.into();
        if modern {
            match self.status(modern) {
                "completed" => shown["result"] = self.result(),
                "input_required" => {
                    let schema = json!({
                        "type": "object",
                        "properties": { "name": { "type": "string" } },
                    });
                    let params = json!({
                        "mode": "form", "message": "Who are you?", "requestedSchema": schema,
                    });
                    let question = json!({ "method": "elicitation/create", "params": params });
                    shown["inputRequests"] = json!({ "who": question });
                }
                _ => {}
            }
        }
        shown
    }

    fn result(&self) -> Value {
        let by = self.name.as_deref().unwrap_or("nobody");
        json!({
            "content": [{ "type": "text", "text": format!("work done for {by}") }],
            "isError": false,
        })
    }
}

impl Tasks {
    /// The tool `work`: as a task where the revision's rules make it one, else at once.
    pub fn begin(&self, request: &Request) -> Result<Value, Failure> {
        let modern = request.connection.world.modern();
        let as_task = if modern {
            request.capabilities()["extensions"].get(TASKS).is_some()
        } else {
            request.params.get("task").is_some()
        };
        let task = Task::default();
        if !as_task {
            return Ok(task.result());
        }
        let id = format!("task-{}", uuid::Uuid::now_v7());
        let mut shown = task.shown(&id, modern);
        lock(&self.tasks).insert(id, task);
        if modern {
            shown["resultType"] = "task".into();
            return Ok(shown);
        }
        Ok(json!({ "task": shown }))
    }

    pub fn answer(&self, request: &Request) -> Result<Value, Failure> {
        let world = &request.connection.world;
        let (modern, method) = (world.modern(), request.method.as_str());
        let core = world.revision == "2025-11-25";
        if modern && request.capabilities()["extensions"].get(TASKS).is_none() {
            return Err((-32021, format!("{method} without the capability of {TASKS}")));
        }
        let mut tasks = lock(&self.tasks);
        if method == "tasks/list" && core {
            let all: Vec<_> = tasks.iter().map(|(id, task)| task.shown(id, modern)).collect();
            return Ok(json!({ "tasks": all }));
        }
        if !(core || modern) {
            return Err(unknown(method));
        }
        let id = request.text("taskId")?;
        let Some(task) = tasks.get_mut(&id) else {
            return Err((-32602, format!("no such task: {id}")));
        };
        match method {
            "tasks/get" => {
                task.polls += 1;
                Ok(task.shown(&id, modern))
            }
            "tasks/cancel" => {
                task.cancelled = true;
                Ok(if modern { json!({}) } else { task.shown(&id, modern) })
            }
            "tasks/result" if core => {
                task.polls = task.polls.max(2);
                let mut result = task.result();
                let related = json!({ "io.modelcontextprotocol/related-task": { "taskId": id } });
                result["_meta"] = related;
                Ok(result)
            }
            "tasks/update" if modern => {
                let name = request.params.pointer("/inputResponses/who/content/name");
                task.name = name.and_then(Value::as_str).map(str::to_owned);
                Ok(json!({}))
            }
            other => Err(unknown(other)),
        }
    }
}
