"""Takes MCP steps with Pydantic AI's toolset and reports them as JSON: see ../README.md.

The step `agent` is a run of an agent whose model calls one tool and ends with what it said."""

from contextlib import asynccontextmanager

import mcp
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPError, MCPToolset
from pydantic_ai.models.test import TestModel

import fastmcp_client
import report


class Steps:
    """The toolset's calls for steps."""

    errors = (mcp.MCPError, MCPError)

    def __init__(self, toolset, inner):
        self.toolset = toolset
        self.inner = inner
        self.heard = inner.heard

    async def take(self, method, params):
        toolset = self.toolset
        match method:
            case "tools/list":
                return {"tools": report.wire(await toolset.list_tools())}
            case "tools/call":
                return {"value": await toolset.direct_call_tool(params["name"], params.get("arguments", {}))}
            case "prompts/list":
                return {"prompts": [{"name": prompt.name} for prompt in await toolset.list_prompts()]}
            case "prompts/get":
                prompt = await toolset.get_prompt(params["name"], params.get("arguments"))
                return {"value": str(prompt.messages)}
            case "resources/list":
                return {"resources": [{"uri": each.uri} for each in await toolset.list_resources()]}
            case "resources/templates/list":
                templates = await toolset.list_resource_templates()
                return {"resourceTemplates": [{"uriTemplate": each.uri_template} for each in templates]}
            case "resources/read":
                return {"value": await toolset.read_resource(params["uri"])}
            case "agent":
                model = TestModel(call_tools=[params["tool"]])
                run = await Agent(model, toolsets=[toolset]).run("Do it.")
                return {"value": run.output}
        raise ValueError(f"no step {method}")

    def wire_error(self, error):
        if isinstance(error, mcp.MCPError):
            return self.inner.wire_error(error)
        return {"code": error.code, "message": error.message, "data": error.data}

    def greeting(self):
        return self.inner.greeting()


@asynccontextmanager
async def connect(mode, target):
    async with fastmcp_client.connect(mode, target) as inner:
        async with MCPToolset(inner.client, tool_error_behavior="error") as toolset:
            yield Steps(toolset, inner)


report.main(connect)
