//! What the tools do.

#![expect(deprecated, reason = "logging is deprecated, and has to work")]

use std::time::Duration;

use rmcp::{
    ErrorData, RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, InputRequests, InputRequiredResult, LoggingLevel,
        LoggingMessageNotificationParam, ProgressNotificationParam,
    },
    service::RequestContext,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    answers::{self, text},
    ask::{Answers, Gathered, Round, elicit, is_modern, only, roots, sample},
    changes::Change,
    resources,
    server::Everything,
    streams::StreamOf,
    tasks::{self, Job},
};

/// Between two messages of one call.
const PAUSE: Duration = Duration::from_millis(50);

impl Everything {
    /// Calls a tool that exists.
    pub async fn call(
        &self,
        request: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = request.name.as_ref();
        if let Some(result) = answers::of_tool(name) {
            return Ok(result.into());
        }
        match name {
            "greet" => Ok(text(format!("Hello, {}!", argument(request, "name")?)).into()),
            "test_tool_with_logging" | "test_logging_tool" => self.log_three_times(context).await,
            "test_tool_with_progress" => progress(context).await,
            "test_reconnection" => self.reconnection(context).await,
            "test_trigger_tool_change" => self.changed(Change::Tools),
            "test_trigger_prompt_change" => self.changed(Change::Prompts),
            "test_trigger_resource_change" => self.changed(Change::Resources),
            "test_trigger_resource_update" => {
                self.changed(Change::Contents(resources::WATCHED.to_owned()))
            }
            "test_missing_capability" => {
                let declared = context.client_capabilities().unwrap_or_default();
                if declared.sampling.is_none() {
                    return Err(crate::ask::undeclared(context, "sampling"));
                }
                Ok(text("The client can sample.").into())
            }
            "slow_compute" | "failing_job" | "protocol_error_job" | "confirm_delete"
            | "multi_input" => self.job(request, context).await,
            _ => self.ask(request, context).await,
        }
    }

    fn changed(&self, change: Change) -> Result<CallToolResponse, ErrorData> {
        self.house.change(change);
        Ok(text("changed").into())
    }

    async fn log_three_times(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let messages =
            ["Tool execution started", "Tool processing data", "Tool execution completed"];
        for message in messages {
            self.log(context, message).await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(text("Logged three times.").into())
    }

    async fn log(
        &self,
        context: &RequestContext<RoleServer>,
        message: &str,
    ) -> Result<(), ErrorData> {
        // A session that set no level gets everything; a request of 2026-07-28 nothing.
        let level = match is_modern(context) {
            true => context.meta.log_level(),
            false => Some(self.level.lock().unwrap_or(LoggingLevel::Debug)),
        };
        if !matches!(level, Some(LoggingLevel::Debug | LoggingLevel::Info)) {
            return Ok(());
        }
        let message = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(message));
        context.peer.notify_logging_message(message).await.map_err(internal)
    }

    async fn reconnection(
        &self,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        // What is said before the answer makes a stream of it, where one would not be needed.
        self.log(context, "Tool execution started").await?;
        if let Some(stream) = context.extensions.get::<StreamOf>() {
            self.house.sessions.send_away(stream).await.map_err(internal)?;
        }
        Ok(text("Reconnected.").into())
    }

    async fn job(
        &self,
        request: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let job = match request.name.as_ref() {
            "slow_compute" => {
                let given = |name| request.arguments.as_ref()?.get(name);
                let seconds = given("seconds").and_then(Value::as_f64).unwrap_or_default();
                let label = given("label").and_then(Value::as_str).unwrap_or("nothing");
                Job::Compute { seconds: seconds.clamp(0.0, 3600.0), label: label.to_owned() }
            }
            "failing_job" => {
                if is_modern(context) {
                    tasks::required(context)?;
                }
                Job::Failing
            }
            "protocol_error_job" => Job::Broken,
            "confirm_delete" => Job::confirm_delete(argument(request, "filename")?),
            _ => Job::multi_input(),
        };
        if tasks::known(context) {
            return Ok(job.start(&self.house.tasks));
        }
        job.call(&self.round(request, context)).await
    }

    fn round<'r>(
        &'r self,
        request: &'r CallToolRequestParams,
        context: &'r RequestContext<RoleServer>,
    ) -> Round<'r> {
        Round {
            context,
            given: request.input_responses.as_ref(),
            state: request.request_state.as_deref(),
            codec: &self.house.codec,
        }
    }

    /// The tools that ask the client.
    async fn ask(
        &self,
        request: &CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let round = self.round(request, context);
        let stateful = matches!(
            request.name.as_ref(),
            "test_input_required_result_request_state"
                | "test_input_required_result_multiple_inputs"
                | "test_input_required_result_tampered_state"
        );
        if stateful {
            round.resumed::<()>()?;
        }
        let name_form = || elicit("What is your name?", json!({"name": {"type": "string"}}));
        let requests = match request.name.as_ref() {
            "test_sampling" => only("sampling", sample(argument(request, "prompt")?, 100)),
            "test_elicitation" => {
                let form = json!({
                    "username": {"type": "string", "description": "User's response"},
                    "email": {"type": "string", "description": "User's email address"},
                });
                only("elicitation", elicit(argument(request, "message")?, form))
            }
            "test_elicitation_sep1034_defaults" => {
                only("defaults", elicit("Please review the defaults", defaults()))
            }
            "test_elicitation_sep1330_enums" => only("enums", elicit("Please choose", enums())),
            "test_streaming_elicitation" => only("name", name_form()),
            "test_input_required_result_elicitation" => only("user_name", name_form()),
            "test_input_required_result_sampling" => {
                only("capital_question", sample("What is the capital of France?", 100))
            }
            "test_input_required_result_list_roots" => only("client_roots", roots()),
            "test_input_required_result_request_state"
            | "test_input_required_result_tampered_state" => {
                only("confirm", elicit("Please confirm", json!({"ok": {"type": "boolean"}})))
            }
            "test_input_required_result_multiple_inputs" => InputRequests::from([
                ("user_name".to_owned(), name_form()),
                ("greeting".to_owned(), sample("Generate a greeting", 50)),
                ("client_roots".to_owned(), roots()),
            ]),
            "test_input_required_result_capabilities" => {
                let declared = context.client_capabilities().unwrap_or_default();
                let mut requests = InputRequests::new();
                if declared.sampling.is_some() {
                    requests.insert("sampling".to_owned(), sample("Say hello", 50));
                }
                if declared.elicitation.is_some() {
                    requests.insert("elicitation".to_owned(), name_form());
                }
                requests
            }
            "test_input_required_result_multi_round" => return two_rounds(&round).await,
            "test_tool_with_task" => {
                if is_modern(context) {
                    tasks::required(context)?;
                }
                only("user_name", name_form())
            }
            other => {
                let message = format!("the tool {other} is listed and not made");
                return Err(ErrorData::internal_error(message, None));
            }
        };
        let answers = match round.gather(requests).await? {
            Gathered::All(answers) => answers,
            Gathered::Missing(missing) if stateful => {
                return Ok(round.asking(missing, &())?.into());
            }
            Gathered::Missing(missing) => {
                return Ok(InputRequiredResult::from_input_requests(missing).into());
            }
        };
        let said = text(tell(request.name.as_ref(), &answers));
        if request.name == "test_tool_with_task" && tasks::known(context) {
            let label = answers["user_name"]["content"]["name"].to_string();
            return Ok(Job::Compute { seconds: 0.1, label }.start(&self.house.tasks));
        }
        Ok(said.into())
    }
}

/// What a tool says once it has its answers.
fn tell(tool: &str, answers: &Answers) -> String {
    let of = |name: &str| answers.get(name).unwrap_or(&Value::Null);
    match tool {
        "test_sampling" => {
            let content = &of("sampling")["content"];
            let said = content["text"].as_str().map_or_else(|| content.to_string(), str::to_owned);
            format!("LLM response: {said}")
        }
        "test_elicitation" => {
            let answer = of("elicitation");
            format!("User response: action={}, content={}", answer["action"], answer["content"])
        }
        "test_elicitation_sep1034_defaults" | "test_elicitation_sep1330_enums" => {
            let answer = answers.values().next().unwrap_or(&Value::Null);
            format!(
                "Elicitation completed: action={}, content={}",
                answer["action"].as_str().unwrap_or_default(),
                answer["content"]
            )
        }
        "test_input_required_result_elicitation" => {
            format!("Hello, {}!", of("user_name")["content"]["name"].as_str().unwrap_or("nobody"))
        }
        "test_input_required_result_request_state" => format!("state-ok {}", json!(answers)),
        _ => format!("Heard {}", json!(answers)),
    }
}

/// Where a call that asks twice has got to.
#[derive(Serialize, Deserialize)]
enum Step {
    Name,
    Color { name: String },
}

async fn two_rounds(round: &Round<'_>) -> Result<CallToolResponse, ErrorData> {
    let mut step = round.resumed()?.unwrap_or(Step::Name);
    loop {
        let (name, question, property) = match &step {
            Step::Name => ("step1", "Step 1: What is your name?", "name"),
            Step::Color { .. } => ("step2", "Step 2: What is your favorite color?", "color"),
        };
        let question = elicit(question, json!({property: {"type": "string"}}));
        let answers = match round.gather(only(name, question)).await? {
            Gathered::All(answers) => answers,
            Gathered::Missing(missing) => return Ok(round.asking(missing, &step)?.into()),
        };
        let said = answers[name]["content"][property].as_str().unwrap_or("nothing").to_owned();
        step = match step {
            Step::Name => Step::Color { name: said },
            Step::Color { name } => return Ok(text(format!("{name} likes {said}.")).into()),
        };
    }
}

async fn progress(context: &RequestContext<RoleServer>) -> Result<CallToolResponse, ErrorData> {
    let token = context.meta.get_progress_token();
    for done in [0.0, 50.0, 100.0] {
        if let Some(token) = &token {
            let progress = ProgressNotificationParam::new(token.clone(), done).with_total(100.0);
            context.peer.notify_progress(progress).await.map_err(internal)?;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(text("Done.").into())
}

fn argument<'r>(request: &'r CallToolRequestParams, name: &str) -> Result<&'r str, ErrorData> {
    let given = request.arguments.as_ref().and_then(|arguments| arguments.get(name)?.as_str());
    let missing = || ErrorData::invalid_params(format!("the argument {name} is missing"), None);
    given.ok_or_else(missing)
}

fn internal(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

/// A form with a default of each type.
fn defaults() -> Value {
    json!({
        "name": {"type": "string", "description": "User name", "default": "John Doe"},
        "age": {"type": "integer", "description": "User age", "default": 30},
        "score": {"type": "number", "description": "User score", "default": 95.5},
        "status": {
            "type": "string",
            "enum": ["active", "inactive", "pending"],
            "default": "active",
        },
        "verified": {"type": "boolean", "description": "Is verified", "default": true},
    })
}

/// A form with every kind of choice.
fn enums() -> Value {
    let options = json!(["option1", "option2", "option3"]);
    let titled = json!([
        {"const": "value1", "title": "First Option"},
        {"const": "value2", "title": "Second Option"},
        {"const": "value3", "title": "Third Option"},
    ]);
    json!({
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    })
}
