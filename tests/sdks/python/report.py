"""What the clients of Python have in common: see ../README.md."""

import asyncio
import json
import os
import sys

MODES = {"legacy": "legacy", "modern": "auto"}
SAMPLED = "42 from a model"
NAME = "Ada"
ROOT = "file:///clients/root"


def wire(value):
    """A model of an SDK as it stands on the wire."""
    if isinstance(value, list):
        return [wire(each) for each in value]
    return value.model_dump(mode="json", by_alias=True, exclude_none=True) if value else None


class Target:
    """Where the server is: a URL, or a command."""

    def __init__(self, kind, *target):
        key = os.environ.get("PORTCULLIS_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url = target[0] if kind == "--url" else None
        self.command = list(target) if kind == "--stdio" else None


class Heard:
    """Progress, which comes when it will."""

    def __init__(self):
        self.queue = asyncio.Queue()

    async def progressed(self, progress, total, message):
        self.queue.put_nowait(progress)

    async def first(self):
        return await asyncio.wait_for(self.queue.get(), 30)


async def cancelled(client, mark):
    """A call that is taken back at its first progress: that, and what the server says of its end."""
    arguments = {"mark": mark}
    waiting = asyncio.create_task(client.take("tools/call", {"name": "wait", "arguments": arguments}))
    heard = await client.heard.first()
    waiting.cancel()
    await asyncio.wait([waiting])
    result = await client.take("tools/call", {"name": "cancelled", "arguments": arguments})
    return {"result": result, "heard": heard}


async def outcome(client, step):
    """One step's part of the report."""
    try:
        if "cancel" in step:
            return await cancelled(client, step["cancel"])
        return {"result": await client.take(step["method"], step.get("params", {}))}
    except client.errors as error:
        return {"error": client.wire_error(error)}


def main(connect):
    """Connects with `connect(mode, target)`, takes the steps of standard input, reports."""

    async def run():
        mode, *target = sys.argv[1:]
        steps = json.load(sys.stdin)
        async with connect(MODES[mode], Target(*target)) as client:
            report = client.greeting()
            report["steps"] = [await outcome(client, step) for step in steps]
        print(json.dumps(report))

    asyncio.run(run())
