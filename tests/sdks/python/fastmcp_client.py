"""Takes MCP steps with FastMCP's client and reports them as JSON: see ../README.md."""

import os
from contextlib import asynccontextmanager

import mcp_types as types
from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from mcp import MCPError

import report


class Steps:
    """The client's calls for steps."""

    errors = (MCPError,)

    def __init__(self):
        self.client = None
        self.heard = report.Heard()

    async def take(self, method, params):
        return report.wire(await self.ask(method, params))

    def ask(self, method, params):
        client = self.client
        match method:
            case "tools/list":
                return client.list_tools_mcp()
            case "tools/call":
                return client.call_tool_mcp(params["name"], params.get("arguments", {}))
            case "prompts/list":
                return client.list_prompts_mcp()
            case "prompts/get":
                return client.get_prompt_mcp(params["name"], params.get("arguments"))
            case "resources/list":
                return client.list_resources_mcp()
            case "resources/templates/list":
                return client.list_resource_templates_mcp()
            case "resources/read":
                return client.read_resource_mcp(params["uri"])
            case "completion/complete":
                kind = params["ref"]["type"]
                reference = types.PromptReference if kind == "ref/prompt" else types.ResourceTemplateReference
                return client.complete_mcp(reference.model_validate(params["ref"]), params["argument"])
        raise ValueError(f"no step {method}")

    async def sampled(self, messages, params, context):
        return report.SAMPLED

    async def elicited(self, message, response_type, params, context):
        if params.mode == "url":
            return ElicitResult(action="accept")
        return ElicitResult(action="accept", content={"name": report.NAME})

    def wire_error(self, error):
        return report.wire(error.error)

    def greeting(self):
        return {"revision": self.client.protocol_version}


@asynccontextmanager
async def connect(mode, target):
    if target.command:
        program, *args = target.command
        transport = StdioTransport(program, args, env=dict(os.environ), keep_alive=False)
    else:
        transport = StreamableHttpTransport(target.url, headers=target.headers)
    steps = Steps()
    steps.client = Client(
        transport,
        mode=mode,
        timeout=60,
        cache=False,
        progress_handler=steps.heard.progressed,
        roots=[report.ROOT],
        sampling_handler=steps.sampled,
        elicitation_handler=steps.elicited,
    )
    async with steps.client:
        yield steps


if __name__ == "__main__":
    report.main(connect)
