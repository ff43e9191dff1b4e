//! Tools that run as tasks (the extension of 2026-07-28) where the client knows them, and otherwise
//! as ordinary calls.

use std::time::Duration;

use rmcp::{
    ErrorData, RoleServer,
    model::{CallToolResponse, CallToolResult, ContentBlock, CreateTaskResult, InputRequests},
    service::RequestContext,
    task_manager::{TaskContext, TaskExit, TaskManager, TaskOptions},
};
use serde_json::json;

use crate::{
    answers::text,
    ask::{Answers, Gathered, Round, elicit, is_modern, undeclared},
};

/// What a job takes at most where somebody waits for the answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A call that may run as a task.
#[derive(Debug, Clone)]
pub enum Job {
    /// Takes its time.
    Compute { seconds: f64, label: String },
    /// Runs, and reports a failure.
    Failing,
    /// Breaks the protocol's own way.
    Broken,
    /// Asks these, then tells what it heard.
    Asking(InputRequests),
}

impl Job {
    pub fn confirm_delete(file: &str) -> Self {
        let question = elicit(&format!("Delete {file}?"), json!({"confirm": {"type": "boolean"}}));
        Self::Asking(InputRequests::from([("confirm".to_owned(), question)]))
    }

    pub fn multi_input() -> Self {
        let questions = ["first", "second"].map(|which| {
            let form = json!({"name": {"type": "string"}, "confirm": {"type": "boolean"}});
            (which.to_owned(), elicit(&format!("The {which} input, please"), form))
        });
        Self::Asking(InputRequests::from(questions))
    }

    /// Starts it as a task.
    pub fn start(self, tasks: &TaskManager) -> CallToolResponse {
        let options = TaskOptions::new().with_poll_interval_ms(100);
        let task = tasks.spawn(options, |context| {
            Box::pin(async move {
                tokio::select! {
                    () = context.cancelled() => Err(TaskExit::Cancelled),
                    ended = self.run(&context) => ended,
                }
            })
        });
        CreateTaskResult::new(task).into()
    }

    async fn run(self, context: &TaskContext) -> Result<CallToolResult, TaskExit> {
        match self {
            Self::Asking(questions) => {
                let asked = questions.into_iter().map(async |(name, question)| {
                    let answer = context.request_input(&name, question).await?;
                    Ok::<_, TaskExit>((name, answer))
                });
                Ok(heard(&futures_util::future::try_join_all(asked).await?.into_iter().collect()))
            }
            other => Ok(other.take(Duration::MAX).await?),
        }
    }

    /// Runs it within the call.
    pub async fn call(self, round: &Round<'_>) -> Result<CallToolResponse, ErrorData> {
        match self {
            Self::Asking(questions) => Ok(match round.gather(questions).await? {
                Gathered::All(answers) => heard(&answers).into(),
                Gathered::Missing(missing) => round.asking(missing, &())?.into(),
            }),
            other => Ok(other.take(PATIENCE).await?.into()),
        }
    }

    async fn take(self, longest: Duration) -> Result<CallToolResult, ErrorData> {
        match self {
            Self::Compute { seconds, label } => {
                let time = Duration::from_secs_f64(seconds).min(longest);
                tokio::time::sleep(time).await;
                Ok(text(format!("computed {label}")))
            }
            Self::Broken => Err(ErrorData::internal_error("the job broke", None)),
            _ => Ok(CallToolResult::error(vec![ContentBlock::text("the job failed")])),
        }
    }
}

fn heard(answers: &Answers) -> CallToolResult {
    text(format!("heard {}", json!(answers)))
}

/// Whether the client takes a task for an answer.
pub fn known(context: &RequestContext<RoleServer>) -> bool {
    is_modern(context)
        && context.client_capabilities().is_some_and(|declared| declared.supports_tasks())
}

/// Refuses a client of 2026-07-28 that does not take one.
pub fn required(context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    if known(context) { Ok(()) } else { Err(undeclared(context, "tasks")) }
}
