"""What Genie measured of a query: the JSON that `genie-t2t-run --profile` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llmconv_plugins.phones.adb import PhoneError

MICROSECONDS = 1e6
_UNITS = {"us": 1 / MICROSECONDS, "ms": 1e-3, "s": 1.0, "": 1.0, "toks/sec": 1.0}


@dataclass(frozen=True)
class Figures:
    """Of one query, seconds and tokens a second.

    Attributes:
        load: until the model is ready.
        prompt_tokens: as Genie counts them.
        first_token: from the query to the first token of the answer.
    """

    load: float
    prompt_tokens: int
    prompt_rate: float
    first_token: float
    tokens: int
    rate: float


def figures(profile: str) -> Figures:
    """The last query of a profile.

    Source: "Genie Profile" of the Genie SDK's documentation (80-63442-10), and what libGenie of QAIRT 2.51 writes.

    Raises:
        PhoneError: it is damaged, or holds no query.
    """
    try:
        events = [e for c in json.loads(profile)["components"] if c["type"] == "dialog" for e in c["events"]]
        loaded = next(event for event in events if event["type"] == "GenieDialog_create")
        query = next(event for event in reversed(events) if event["type"] == "GenieDialog_query")
        return Figures(
            _value(loaded, "init-time"),
            int(_value(query, "num-prompt-tokens")),
            _value(query, "prompt-processing-rate"),
            _value(query, "time-to-first-token"),
            int(_value(query, "num-generated-tokens")),
            _value(query, "token-generation-rate"),
        )
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise PhoneError(f"profile of genie-t2t-run: {error!r}; this release of Genie writes another form") from error


def _value(event: dict[str, Any], name: str) -> float:
    return float(event[name]["value"]) * _UNITS[event[name]["unit"]]
