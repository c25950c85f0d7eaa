"""Renders a chat template in a limited process; started by `chat.py`, asked in JSON.

A template comes from a checkpoint that nobody reviewed. jinja2's sandbox keeps it from Python's objects, but
not from looping for ever or from `'x' * 10**10`; only the operating system can end those reliably. This file
imports nothing of bitnet_onnx, so that the process starts quickly and holds nothing worth reaching.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from types import CodeType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateRefusalError(Exception):
    """The template called raise_exception: these messages do not suit it."""


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks the assistant's words for training: its body."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusalError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> ImmutableSandboxedEnvironment:
    """The environment that chat templates are written for."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@lru_cache(maxsize=1)
def _compiled(source: str) -> CodeType:
    return make_environment().compile(source)


def render(request: dict[str, Any]) -> dict[str, Any]:
    """Renders every conversation of the request.

    Args:
        request: `template`, `variables`, `conversations` (a list of lists of messages) and `max_characters`.

    Returns:
        `{"texts": [...]}`, or `{"refused": message}` from the template's raise_exception, or
        `{"error": message}`.
    """
    limit = request["max_characters"]
    try:
        code = _compiled(request["template"])
        texts = []
        for messages in request["conversations"]:
            # Conversations share the code, which cannot change, and nothing that a template could leave something in.
            environment = make_environment()
            template = environment.template_class.from_code(environment, code, environment.make_globals(None))
            pieces, size = [], 0
            for piece in template.generate(messages=messages, **request["variables"]):
                size += len(piece)
                if size > limit:
                    return {"error": f"it writes more than {limit} characters"}
                pieces.append(piece)
            texts.append("".join(pieces))
    except TemplateRefusalError as error:
        return {"refused": str(error)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # whatever a template can provoke is the template's fault
        return {"error": f"{type(error).__name__}: {error}"}
    return {"texts": texts}


def answer(request: bytes) -> dict[str, Any]:
    """`render` of JSON."""
    return render(json.loads(request))
