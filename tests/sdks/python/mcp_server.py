"""A server of the official Python SDK over HTTP, which prints its URL: see ../README.md."""

import asyncio
import socket
from typing import Annotated

import uvicorn
from mcp.server.mcpserver import Context, Elicit, ListRoots, MCPServer, Resolve, Sample
from mcp_types import CreateMessageResult, ListRootsResult, SamplingMessage, TextContent
from pydantic import BaseModel

server = MCPServer("python-sdk")


class Person(BaseModel):
    name: str


def who() -> Elicit[Person]:
    return Elicit("Who are you?", Person)


def what() -> Sample:
    question = TextContent(type="text", text="What is the answer?")
    return Sample([SamplingMessage(role="user", content=question)], max_tokens=16)


def where() -> ListRoots:
    return ListRoots()


@server.tool()
def echo(text: str) -> str:
    """Says it again."""
    return f"mcp: {text}"


@server.tool()
async def steps(ctx: Context) -> str:
    """Takes three steps."""
    for step in (1, 2, 3):
        await ctx.report_progress(step, 3)
    return "three steps"


@server.tool()
def form(person: Annotated[Person, Resolve(who)]) -> str:
    """Asks the user for a name."""
    return f"the client said: {person.name}"


@server.tool()
def sample(answer: Annotated[CreateMessageResult, Resolve(what)]) -> str:
    """Asks the client's model."""
    return f"the client said: {answer.content.text}"


@server.tool()
def roots(listed: Annotated[ListRootsResult, Resolve(where)]) -> str:
    """Asks for the client's roots."""
    return f"the client said: {listed.roots[0].uri}"


@server.resource("scripted:///watched")
def watched() -> str:
    """A text."""
    return "the text of scripted:///watched"


@server.prompt()
def greet(name: str) -> str:
    """Greets somebody."""
    return f"Greet {name}."


async def main():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    config = uvicorn.Config(server.streamable_http_app(), log_level="error")
    await uvicorn.Server(config).serve(sockets=[listener])


asyncio.run(main())
