"""The server that the conformance suite needs: `conformance.py mcp|fastmcp`, see ../README.md."""

import asyncio
import base64
import json
import socket
import sys
from typing import Annotated

import fastmcp
import uvicorn
from fastmcp.prompts import Message
from mcp.server import mcpserver
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, Field

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
IMAGE = ImageContent(type="image", data=PNG, mime_type="image/png")

FASTMCP = sys.argv[1] == "fastmcp"
if FASTMCP:
    from fastmcp import Context

    server = fastmcp.FastMCP("fastmcp")
    message = Message
else:
    from mcp.server.mcpserver import Context

    server = mcpserver.MCPServer("mcp", version="1.0.0")
    message = UserMessage


def text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


def embedded(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    resource = TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return EmbeddedResource(type="resource", resource=resource)


@server.tool()
def test_simple_text() -> str:
    """Returns a text."""
    return "This is a simple text response for testing."


@server.tool()
def test_image_content() -> list[ImageContent]:
    """Returns an image."""
    return [IMAGE]


@server.tool()
def test_audio_content() -> list[AudioContent]:
    """Returns a sound."""
    return [AudioContent(type="audio", data=WAV, mime_type="audio/wav")]


@server.tool()
def test_embedded_resource() -> list[EmbeddedResource]:
    """Returns a resource."""
    return [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


@server.tool()
def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Returns contents of three types."""
    resource = embedded("test://mixed-content-resource", "application/json", '{"test": "data", "value": 123}')
    return [text("Multiple content types test:"), IMAGE, resource]


@server.tool()
def test_error_handling() -> str:
    """Fails."""
    raise RuntimeError("This tool intentionally returns an error for testing")


@server.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Logs three messages."""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(line)
        await asyncio.sleep(0.05)
    return "logged"


@server.tool()
async def test_logging_tool(ctx: Context) -> str:
    """Logs one message."""
    await ctx.info("test_logging_tool")
    return "logged"


@server.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Reports progress three times."""
    for progress in (0, 50, 100):
        await ctx.report_progress(progress, 100, f"step {progress}")
        await asyncio.sleep(0.05)
    return "done"


@server.tool()
async def test_reconnection(ctx: Context) -> str:
    """Closes the stream of the call before it returns."""
    await ctx.close_sse_stream()
    await asyncio.sleep(0.05)
    return "reconnected"


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Asks the client's model."""
    result = await ctx.session.create_message(
        messages=[SamplingMessage(role="user", content=text(prompt))],
        max_tokens=100,
        related_request_id=ctx.request_id,
    )
    return f"LLM response: {result.content.text}"


class Response(BaseModel):
    response: str = Field(description="User's response")


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: Annotated[str, Field(json_schema_extra={"enum": ["active", "inactive", "pending"]})] = "active"
    verified: bool = True


def titled(*values: str) -> list[dict]:
    return [{"const": value, "title": f"The {value}"} for value in values]


class Enums(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["a", "b", "c"]})
    titledSingle: str = Field(json_schema_extra={"oneOf": titled("a", "b", "c")})
    legacyEnum: str = Field(json_schema_extra={"enum": ["a", "b"], "enumNames": ["The a", "The b"]})
    untitledMulti: list[str] = Field(json_schema_extra={"items": {"type": "string", "enum": ["a", "b", "c"]}})
    titledMulti: list[str] = Field(json_schema_extra={"items": {"anyOf": titled("a", "b", "c")}})


async def elicit(ctx: Context, message: str, form: type[BaseModel]) -> str:
    answer = await ctx.elicit(message, form)
    content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
    return f"Elicitation completed: action={answer.action}, content={content}"


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    """Asks the user."""
    return await elicit(ctx, message, Response)


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Asks the user, with defaults."""
    return await elicit(ctx, "Please answer", Defaults)


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Asks the user to choose."""
    return await elicit(ctx, "Please choose", Enums)


REGION = Field(json_schema_extra={"x-mcp-header": "Region"})


@server.tool()
def test_x_mcp_header(region: Annotated[str, REGION] = "none") -> str:
    """Has an argument that a header repeats."""
    return f"region={region}"


@server.tool()
def test_streaming_elicitation() -> str:
    """Returns a text."""
    return "streamed"


@server.tool()
def greet(name: str) -> str:
    """Greets somebody, never as a task."""
    return f"Hello, {name}!"


@server.tool()
async def slow_compute(seconds: float = 1, label: str = "") -> str:
    """Takes its time."""
    await asyncio.sleep(seconds)
    return f"computed {label}"


def ask(name: str, type: str) -> ElicitRequest:
    form = {"type": "object", "properties": {name: {"type": type}}, "required": [name]}
    return ElicitRequest(params=ElicitRequestFormParams(message=f"What is the {name}?", requested_schema=form))


def sample() -> CreateMessageRequest:
    question = SamplingMessage(role="user", content=text("What is the capital of France?"))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[question], max_tokens=100))


def asks(tool: str, inputs: dict, state: str | None = None):
    """Adds a tool that asks for these inputs until all are there."""

    async def call(ctx: Context) -> str | InputRequiredResult:
        answers = ctx.input_responses or {}
        if all(name in answers for name in inputs) and (state is None or ctx.request_state == state):
            return f"state-ok: {list(answers)}"
        return InputRequiredResult(input_requests=inputs, request_state=state)

    server.tool(name=tool, description=f"Tool {tool}")(call)


@server.tool()
async def test_missing_capability(ctx: Context) -> str:
    """Needs a client with a model."""
    declared = ctx.session.client_capabilities
    if declared is None or declared.sampling is None:
        data = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(code=MISSING_REQUIRED_CLIENT_CAPABILITY, message="This tool needs sampling", data=data)
    return "declared"


if not FASTMCP:

    @server.tool()
    async def test_trigger_tool_change(ctx: Context) -> str:
        """Reports that the list of tools has changed."""
        await ctx.notify_tools_changed()
        return "changed"

    @server.tool()
    async def test_trigger_prompt_change(ctx: Context) -> str:
        """Reports that the list of prompts has changed."""
        await ctx.notify_prompts_changed()
        return "changed"


PREFIX = "test_input_required_result"
asks(f"{PREFIX}_elicitation", {"user_name": ask("name", "string")})
asks(f"{PREFIX}_sampling", {"capital_question": sample()})
asks(f"{PREFIX}_list_roots", {"client_roots": ListRootsRequest()})
asks(f"{PREFIX}_request_state", {"confirm": ask("ok", "boolean")}, "asked")
asks(f"{PREFIX}_tampered_state", {"confirm": ask("ok", "boolean")}, "asked")
SEVERAL = {"user_name": ask("name", "string"), "greeting": sample(), "client_roots": ListRootsRequest()}
asks(f"{PREFIX}_multiple_inputs", SEVERAL, "asked")


@server.tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Asks twice."""
    done = int(ctx.request_state or "0")
    if done == 2:
        return "Multi-round complete"
    requests = {f"step{done + 1}": ask(("name", "color")[done], "string")}
    return InputRequiredResult(input_requests=requests, request_state=str(done + 1))


@server.tool()
async def test_input_required_result_capabilities(ctx: Context) -> str | InputRequiredResult:
    """Asks for what the client can answer."""
    if ctx.input_responses:
        return "answered"
    declared = ctx.session.client_capabilities
    kinds = {"user_name": "elicitation", "greeting": "sampling", "client_roots": "roots"}
    requests = {name: SEVERAL[name] for name, kind in kinds.items() if getattr(declared, kind, None)}
    return InputRequiredResult(input_requests=requests)


@server.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    """A text."""
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    """An image."""
    return base64.b64decode(PNG)


@server.resource("test://watched-resource", mime_type="text/plain")
def watched() -> str:
    """A text to subscribe to."""
    return "Watched resource content"


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    """Data of an id."""
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@server.prompt()
def test_simple_prompt() -> list[message]:
    """A prompt without arguments."""
    return [message("This is a simple prompt for testing.")]


@server.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> list[message]:
    """A prompt with arguments."""
    return [message(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]


@server.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[message]:
    """A prompt with a resource."""
    resource = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
    return [message(resource), message("Please process the embedded resource above.")]


@server.prompt()
def test_prompt_with_image() -> list[message]:
    """A prompt with an image."""
    return [message(IMAGE), message("Please analyze the image above.")]


@server.prompt()
async def test_input_required_result_prompt(ctx: Context) -> list[message] | InputRequiredResult:
    """A prompt that asks the user."""
    answer = (ctx.input_responses or {}).get("user_context")
    if answer is None:
        return InputRequiredResult(input_requests={"user_context": ask("context", "string")})
    return [message(f"Use the following context: {answer.content['context']}")]


@server.completion()
async def complete(ref, argument, context) -> Completion:
    return Completion(values=[], total=0, has_more=False)


async def main():
    app = server.http_app() if FASTMCP else server.streamable_http_app()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    config = uvicorn.Config(app, log_level="error")
    await uvicorn.Server(config).serve(sockets=[listener])


asyncio.run(main())
