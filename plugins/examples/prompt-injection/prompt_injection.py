"""Looks for instructions to the model in what tools, resources and prompts answer.

Each rule that fits adds its weight. From `taint-at` the exchange is labelled `tainted`, from
`refuse-at` the answer is refused. Heuristics see what is clumsy and miss what is not: let policies
bound what a tainted session may do.
"""

import json
import re
import unicodedata

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import guest
from wit_world.imports import metrics

SCHEMA = {
    "type": "object",
    "properties": {
        "taint-at": {"type": "integer", "minimum": 1, "default": 2},
        "refuse-at": {"type": "integer", "minimum": 1, "default": 6},
        "trusted": {
            "description": "Servers whose answers are not looked at",
            "type": "array",
            "items": {"type": "string"},
        },
    },
    "additionalProperties": False,
}

# A rule's name, its weight, what it looks for, and what it is. No pattern has a part that repeats
# within one that repeats: what is looked at was written by whoever wants it to take long.
RULES = [
    (name, weight, re.compile(pattern), what)
    for name, weight, pattern, what in [
        (
            "override",
            4,
            r"\b(?:ignore|disregard|forget|override)\b.{0,40}"
            r"\b(?:previous|prior|above|earlier|preceding|system|all|your)\b.{0,40}"
            r"\b(?:instruction|prompt|rule|direction|guideline|message|context)s?\b",
            "text asks to set instructions aside",
        ),
        (
            "roles",
            4,
            r"<\|(?:im_start|im_end|system|user|assistant|endoftext)\|>|\[/?inst\]|<</?sys>>"
            r"|(?:^|\n)\s{0,8}(?:#{1,6} ?)?(?:system|assistant|developer)(?: prompt| message)?:",
            "text has the marks of a conversation's roles",
        ),
        (
            "secrecy",
            4,
            r"\b(?:do not|don't|never|without)\b.{0,20}"
            r"\b(?:tell|telling|inform|informing|mention|mentioning|notify|notifying|reveal|alert|asking)\b"
            r".{0,40}\buser\b",
            "text asks to keep something from the user",
        ),
        (
            "persona",
            2,
            r"\b(?:you are now|from now on,? you|act as|pretend (?:to be|you are)|new instructions?:)",
            "text gives the model another part to play",
        ),
        (
            "commands",
            2,
            r"\b(?:you must|please|now|immediately|first,?)\b.{0,30}\b(?:call|use|invoke|run|execute)\b"
            r".{0,30}\b(?:tool|function|command|shell|script)\b",
            "text asks to use a tool",
        ),
        (
            "errand",
            3,
            r"\b(?:send|post|upload|forward|email|exfiltrate|transmit)\b.{0,60}"
            r"\b(?:password|secret|token|api key|credential|private key|conversation|chat history)s?\b",
            "text asks to send something secret",
        ),
        (
            "image",
            3,
            r"!\[[^\]\n]{0,200}\]\(https?://[^)\s]{0,500}\?[^)\s]{0,2000}=",
            "an image's address carries data",
        ),
    ]
]

# Written to be read by models and not by people.
TAGS = range(0xE0000, 0xE0080)
INVISIBLE = set("\u200b\u200c\u2060\u2061\u2062\u2063\u2064\ufeff\u202a\u202b\u202d\u202e")


def texts(value):
    """Every string in it, keys too."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending.extend(value.keys())
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def look(text):
    """The rules that fit a text."""
    if text.isascii():
        plain = text
    else:
        if any(ord(c) in TAGS for c in text):
            yield "tags", 6, "text in invisible characters"
        if sum(c in INVISIBLE for c in text) > 2:
            yield "invisible", 2, "invisible characters"
        # What cannot be seen must not keep a rule from fitting.
        plain = "".join(c for c in text if c not in INVISIBLE and ord(c) not in TAGS)
        plain = unicodedata.normalize("NFKC", plain)
    plain = plain.lower()
    # Words may be apart by lines, too. `roles` needs the lines.
    flat = re.sub(r"\s+", " ", plain)
    for name, weight, pattern, what in RULES:
        if pattern.search(plain if name == "roles" else flat):
            yield name, weight, what


# Not an attribute of `Guest`: there is a new one for every call.
config = {"taint-at": 2, "refuse-at": 6, "trusted": []}


class Guest(exports.Guest):
    def describe(self):
        return guest.Manifest(
            name="prompt-injection",
            version="0.1.0",
            description="Looks for instructions to the model in answers",
            hooks=[
                guest.Hook(["tools/call", "resources/read", "prompts/get"], guest.Phase.RESPONSE)
            ],
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
            return self.verdict(message)
        except Exception as error:
            # Python would print it to where nobody reads. Nothing of the message belongs here.
            raise Err(type(error).__name__) from None

    def verdict(self, message):
        if message.server in config["trusted"]:
            return guest.Verdict(guest.Decision_Pass(), [], [])

        found = {}
        for text in texts(json.loads(message.payload)):
            for name, weight, what in look(text):
                found[name] = (weight, what)
        score = sum(weight for weight, _ in found.values())

        labels = []
        decision = guest.Decision_Pass()
        if score >= config["taint-at"]:
            labels.append("tainted")
            metrics.count("tainted", 1)
        if score >= config["refuse-at"]:
            labels.append("injection")
            metrics.count("refused", 1)
            decision = guest.Decision_Refuse(
                guest.Refusal(
                    code="injection",
                    reason="the answer reads as instructions to you; it is held back",
                    detail=f"score {score}: {', '.join(sorted(found))}",
                )
            )
        findings = [guest.Finding(name, what) for name, (_, what) in sorted(found.items())]
        return guest.Verdict(decision, labels, findings)
