"""A FastMCP server over standard input and output: see ../README.md."""

from dataclasses import dataclass

from fastmcp import Context, FastMCP
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

server = FastMCP("fastmcp")
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@dataclass
class Person:
    name: str


@server.tool
def echo(text: str) -> str:
    """Says it again."""
    return f"fastmcp: {text}"


@server.tool
async def steps(ctx: Context) -> str:
    """Takes three steps."""
    for step in (1, 2, 3):
        await ctx.report_progress(step, 3)
    return "three steps"


@server.tool
async def form(ctx: Context) -> str | InputRequiredResult:
    """Asks the user for a name."""
    if ctx.session.protocol_version < "2026":
        answer = await ctx.elicit("Who are you?", Person)
        return f"the client said: {answer.data.name}"
    if ctx.input_responses is None:
        params = ElicitRequestFormParams(message="Who are you?", requested_schema=FORM)
        return InputRequiredResult(input_requests={"name": ElicitRequest(params=params)})
    return f"the client said: {ctx.input_responses['name'].content['name']}"


@server.resource("scripted:///watched")
def watched() -> str:
    """A text."""
    return "the text of scripted:///watched"


@server.prompt
def greet(name: str) -> str:
    """Greets somebody."""
    return f"Greet {name}."


server.run(show_banner=False)
