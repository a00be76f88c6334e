"""Renders chat templates, which come with checkpoints: in a sandbox, as a process with little memory and time.

Run by its path, so that it imports Jinja alone. Each line of stdin, {"template": ..., "values": ...}, is answered by a
line of stdout, {"text": ...} or {"error": ...}.
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 1  # of the CPU, for one rendering; 500 messages take a twentieth of it
MEMORY = 512 << 20  # bytes of address space; a tenth of it is Python and Jinja
LENGTH = 8 << 20  # characters of a rendering
ERROR_LENGTH = 500


class _Generation(Extension):
    """`{% generation %}`, with which transformers marks what a model is trained on: here its body."""

    tags = {"generation"}  # noqa: RUF012  declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja with what transformers adds to it."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return made


def _to_json(value: Any, indent: int | None = None, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # Jinja's own escapes what HTML would need


def _refuse(message: str) -> None:
    raise TemplateError(message)


def explain(error: Exception) -> str:
    """What is wrong with a template, in one line."""
    if isinstance(error, MemoryError):
        return f"takes more than {MEMORY >> 20} MiB of memory"
    text = " ".join(str(error)[:ERROR_LENGTH].split())
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"


def main() -> None:
    """Answer until stdin ends, as it does when the parent dies."""
    _limit_memory()
    for line in sys.stdin:
        _limit_time(SECONDS)
        try:
            answer = _render(**json.loads(line))
        except Exception as error:  # a template can raise whatever an expression can
            answer = {"error": explain(error)}
        _limit_time(0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _render(template: str, values: dict[str, Any]) -> dict[str, str]:
    text = _compile(template).render(values)
    return {"text": text} if len(text) <= LENGTH else {"error": f"renders more than {LENGTH:,} characters"}


@lru_cache(8)
def _compile(template: str) -> Template:
    return environment().from_string(template)  # computes what is constant in it


def _limit_memory() -> None:
    if sys.platform == "linux":  # the others do not hold to it
        import resource  # noqa: PLC0415  not on Windows

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_time(seconds: float) -> None:
    """End this process, even inside one long operation, when it has computed for so long; 0 for no limit."""
    if sys.platform != "win32":  # where the parent's patience is the limit
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, whatever the parent does with its own
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
