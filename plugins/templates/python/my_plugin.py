"""Refuses calls whose arguments hold the marker of the operator's config = { marker = "…" }."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import guest

SCHEMA = {
    "type": "object",
    "properties": {
        "marker": {"description": "The text that must not leave", "type": "string", "minLength": 1}
    },
    "required": ["marker"],
    "additionalProperties": False,
}

# Not an attribute of `Guest`: there is a new one for every call.
config = {}


def holds(value, text):
    if isinstance(value, str):
        return text in value
    if isinstance(value, dict):
        return any(text in key or holds(inner, text) for key, inner in value.items())
    return isinstance(value, list) and any(holds(inner, text) for inner in value)


class Guest(exports.Guest):
    def describe(self):
        return guest.Manifest(
            name="my-plugin",
            version="0.1.0",
            description="Refuses calls that carry a marker",
            hooks=[guest.Hook(["tools/call"], guest.Phase.REQUEST)],
            lifetime=guest.Lifetime.MESSAGE,
            config_schema=json.dumps(SCHEMA),
            hosts=[],
            secrets=[],
            once=False,
            options=[],
        )

    def start(self, text):
        config.update(json.loads(text))

    def inspect(self, message):
        try:
            arguments = json.loads(message.payload).get("arguments")
            marked = holds(arguments, config["marker"])
        except Exception as error:
            # Python would print it to where nobody reads. Nothing of the message belongs here.
            where = error.__traceback__
            while where.tb_next:
                where = where.tb_next
            raise Err(f"{type(error).__name__} in line {where.tb_lineno}") from None
        decision = guest.Decision_Pass()
        if marked:
            reason = "the arguments hold a marker that must not leave"
            decision = guest.Decision_Refuse(guest.Refusal("marker", reason, None))
        return guest.Verdict(decision, [], [])
