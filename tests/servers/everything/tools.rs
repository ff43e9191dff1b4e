//! What is said of the tools in lists.

use std::sync::Arc;

use rmcp::model::{JsonObject, Tool};
use serde_json::{Value, json};

/// All tools, in their order. The first one takes no arguments, which the suite relies upon.
pub fn list(changed: bool) -> Vec<Tool> {
    let mut tools: Vec<_> =
        PLAIN.iter().map(|(name, description)| tool(name, description, json!({}))).collect();
    tools.extend([
        tool(
            "json_schema_2020_12_tool",
            "Tool with JSON Schema 2020-12 features",
            json_schema_2020_12(),
        ),
        tool(
            "test_header_tool",
            "Takes an argument that is in a header too",
            json!({"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}),
        ),
        tool("test_sampling", "Asks the client's model", required("prompt", "string")),
        tool("test_elicitation", "Asks the person", required("message", "string")),
        tool("greet", "Greets, and never as a task", required("name", "string")),
        tool(
            "slow_compute",
            "Takes its time",
            json!({
                "properties": {"seconds": {"type": "number"}, "label": {"type": "string"}},
                "required": ["seconds"],
            }),
        ),
        tool("confirm_delete", "Asks before it deletes", required("filename", "string")),
    ]);
    if changed {
        tools.push(tool("test_dynamic_tool", "Comes and goes", json!({})));
    }
    tools
}

/// Tools that take no arguments.
const PLAIN: &[(&str, &str)] = &[
    ("test_simple_text", "Answers with text"),
    ("test_image_content", "Answers with an image"),
    ("test_audio_content", "Answers with sound"),
    ("test_embedded_resource", "Answers with a resource"),
    ("test_multiple_content_types", "Answers with text, an image and a resource"),
    ("test_error_handling", "Fails"),
    ("test_tool_with_logging", "Logs while it runs"),
    ("test_logging_tool", "Logs while it runs"),
    ("test_tool_with_progress", "Tells of its progress"),
    ("test_reconnection", "Ends the stream of its answer before it answers"),
    ("test_elicitation_sep1034_defaults", "Asks the person, with defaults"),
    ("test_elicitation_sep1330_enums", "Asks the person to choose"),
    ("test_streaming_elicitation", "Asks the person"),
    ("test_missing_capability", "Needs a client that can sample"),
    ("test_trigger_tool_change", "Changes the list of tools"),
    ("test_trigger_prompt_change", "Changes the list of prompts"),
    ("test_trigger_resource_change", "Tells that the list of resources changed"),
    ("test_trigger_resource_update", "Tells that the watched resource changed"),
    ("test_input_required_result_elicitation", "Asks the person"),
    ("test_input_required_result_sampling", "Asks the client's model"),
    ("test_input_required_result_list_roots", "Asks for the client's roots"),
    ("test_input_required_result_request_state", "Asks, and keeps state"),
    ("test_input_required_result_multiple_inputs", "Asks all that can be asked"),
    ("test_input_required_result_multi_round", "Asks twice"),
    ("test_input_required_result_tampered_state", "Asks, and keeps state"),
    ("test_input_required_result_capabilities", "Asks whatever the client can answer"),
    ("failing_job", "Runs as a task only, and fails"),
    ("protocol_error_job", "Breaks"),
    ("multi_input", "Asks two things at once"),
    ("test_tool_with_task", "Asks, and then runs as a task"),
];

fn tool(name: &'static str, description: &'static str, mut schema: Value) -> Tool {
    schema["type"] = json!("object");
    let Value::Object(schema) = schema else { unreachable!("a schema is an object") };
    Tool::new(name, description, Arc::<JsonObject>::new(schema))
}

fn required(name: &str, kind: &str) -> Value {
    json!({"properties": {name: {"type": kind}}, "required": [name]})
}

/// The keywords that the suite looks for.
fn json_schema_2020_12() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }},
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false,
    })
}
