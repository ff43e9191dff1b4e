"""Takes MCP steps with the official Python SDK and reports them as JSON: see ../README.md."""

import asyncio
import json
import os
import sys

import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client


def take(client, method, params):
    """The SDK's call for one step."""
    match method:
        case "tools/list":
            return client.list_tools(cache_mode="bypass")
        case "tools/call":
            return client.call_tool(params["name"], params.get("arguments"))
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


def wire(value):
    """A model of the SDK as it stands on the wire."""
    return value.model_dump(mode="json", by_alias=True, exclude_none=True) if value else None


async def report(server, mode, steps):
    async with Client(server, mode=mode, read_timeout_seconds=60) as client:
        outcomes = []
        for step in steps:
            try:
                outcomes.append({"result": wire(await take(client, step["method"], step.get("params", {})))})
            except MCPError as error:
                outcomes.append({"error": wire(error.error)})
        return {
            "revision": client.protocol_version,
            "server": wire(client.server_info),
            "capabilities": wire(client.server_capabilities),
            "steps": outcomes,
        }


async def main():
    mode, kind, *target = sys.argv[1:]
    mode = {"legacy": "legacy", "modern": "auto"}[mode]
    steps = json.load(sys.stdin)
    if kind == "--stdio":
        server = StdioServerParameters(command=target[0], args=target[1:], env=dict(os.environ))
        print(json.dumps(await report(server, mode, steps)))
        return
    key = os.environ.get("PORTCULLIS_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with create_mcp_http_client(headers=headers) as http:
        server = streamable_http_client(target[0], http_client=http)
        print(json.dumps(await report(server, mode, steps)))


asyncio.run(main())
