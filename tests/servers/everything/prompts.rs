//! Prompts.

use rmcp::{
    ErrorData,
    model::{
        ContentBlock, GetPromptResult, JsonObject, Prompt, PromptArgument, PromptMessage, Role,
    },
};

use crate::answers::{PNG, embedded};

/// The prompt with an argument that can be completed.
pub const WITH_ARGUMENTS: &str = "test_prompt_with_arguments";
/// The prompt that only who answers a question gets.
pub const ASKING: &str = "test_input_required_result_prompt";

/// All prompts, in their order.
pub fn list(changed: bool) -> Vec<Prompt> {
    let mut prompts = vec![
        prompt("test_simple_prompt", "A prompt without arguments", &[]),
        prompt(WITH_ARGUMENTS, "A prompt with arguments", &["arg1", "arg2"]),
        prompt(
            "test_prompt_with_embedded_resource",
            "A prompt with a resource in it",
            &["resourceUri"],
        ),
        prompt("test_prompt_with_image", "A prompt with an image in it", &[]),
        prompt(ASKING, "A prompt that asks for its context", &[]),
    ];
    if changed {
        prompts.push(prompt("test_dynamic_prompt", "A prompt that comes and goes", &[]));
    }
    prompts
}

fn prompt(name: &str, description: &str, arguments: &[&str]) -> Prompt {
    let arguments = arguments
        .iter()
        .map(|name| PromptArgument::new(*name).with_description("An argument").with_required(true))
        .collect();
    Prompt::new(name, Some(description), Some(arguments))
}

/// A prompt that asks nothing.
pub fn get(name: &str, arguments: Option<&JsonObject>) -> Result<GetPromptResult, ErrorData> {
    let argument = |name: &str| {
        let value = arguments.and_then(|arguments| arguments.get(name)?.as_str());
        let missing = || ErrorData::invalid_params(format!("the argument {name} is missing"), None);
        value.ok_or_else(missing)
    };
    Ok(messages(match name {
        "test_simple_prompt" | "test_dynamic_prompt" => {
            vec![ContentBlock::text("This is a simple prompt for testing.")]
        }
        WITH_ARGUMENTS => {
            let (first, second) = (argument("arg1")?, argument("arg2")?);
            vec![ContentBlock::text(format!(
                "Prompt with arguments: arg1='{first}', arg2='{second}'"
            ))]
        }
        "test_prompt_with_embedded_resource" => {
            let uri = argument("resourceUri")?;
            vec![
                embedded(uri, "text/plain", "Embedded resource content for testing."),
                ContentBlock::text("Please process the embedded resource above."),
            ]
        }
        "test_prompt_with_image" => vec![
            ContentBlock::image(PNG, "image/png"),
            ContentBlock::text("Please analyze the image above."),
        ],
        _ => return Err(ErrorData::invalid_params(format!("there is no prompt {name}"), None)),
    }))
}

/// Messages of the user.
pub fn messages(contents: Vec<ContentBlock>) -> GetPromptResult {
    let user = |content| PromptMessage::new(Role::User, content);
    GetPromptResult::new(contents.into_iter().map(user).collect())
}
