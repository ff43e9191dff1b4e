"""Takes MCP steps with the official Python SDK and reports them as JSON: see ../README.md."""

import os
from contextlib import asynccontextmanager

import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

import report


class Steps:
    """The SDK's calls for steps."""

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
                return client.list_tools(cache_mode="bypass")
            case "tools/call":
                return client.call_tool(
                    params["name"], params.get("arguments"), progress_callback=self.heard.progressed
                )
            case "prompts/list":
                return client.list_prompts(cache_mode="bypass")
            case "prompts/get":
                return client.get_prompt(params["name"], params.get("arguments"))
            case "resources/list":
                return client.list_resources(cache_mode="bypass")
            case "resources/templates/list":
                return client.list_resource_templates(cache_mode="bypass")
            case "resources/read":
                return client.read_resource(params["uri"], cache_mode="bypass")
            case "completion/complete":
                kind = params["ref"]["type"]
                reference = types.PromptReference if kind == "ref/prompt" else types.ResourceTemplateReference
                return client.complete(reference.model_validate(params["ref"]), params["argument"])
            case "ping":
                return client.send_ping()
        raise ValueError(f"no step {method}")

    async def sampled(self, context, params):
        content = types.TextContent(type="text", text=report.SAMPLED)
        return types.CreateMessageResult(role="assistant", content=content, model="none")

    async def elicited(self, context, params):
        if params.mode == "url":
            return types.ElicitResult(action="accept")
        return types.ElicitResult(action="accept", content={"name": report.NAME})

    async def roots(self, context):
        return types.ListRootsResult(roots=[types.Root(uri=report.ROOT)])

    def wire_error(self, error):
        return report.wire(error.error)

    def greeting(self):
        return {
            "revision": self.client.protocol_version,
            "server": report.wire(self.client.server_info),
            "capabilities": report.wire(self.client.server_capabilities),
        }


@asynccontextmanager
async def connect(mode, target):
    steps = Steps()

    def client(server):
        return Client(
            server,
            mode=mode,
            read_timeout_seconds=60,
            sampling_callback=steps.sampled,
            elicitation_callback=steps.elicited,
            list_roots_callback=steps.roots,
        )

    if target.command:
        program, *args = target.command
        server = StdioServerParameters(command=program, args=args, env=dict(os.environ))
        async with client(server) as steps.client:
            yield steps
        return
    async with create_mcp_http_client(headers=target.headers) as http:
        async with client(streamable_http_client(target.url, http_client=http)) as steps.client:
            yield steps


report.main(connect)
