"""Tries the chat templates of a model out, in a child that may use a little time and memory.

    python -m engine_service.convert.templates

It reads one template from its standard input, and answers with what is wrong with it, empty if
nothing is. A template is a program from a stranger: it is rendered in a sandbox as the engine's,
but a sandbox bounds neither time nor memory.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine_service.convert.errors import ConversionError
from engine_service.convert.files import parse_json_object

TEMPLATE_NAME: Final = "chat_template.jinja"
MAX_TEMPLATES: Final = 16
MAX_CPU_S: Final = 4
MAX_MEMORY_BYTES: Final = 1 << 30
MAX_OUTPUT_CHARS: Final = 1 << 18
# For a machine that is busy with other things; the processor's time is what is bounded.
_MAX_WALL_S: Final = 120
_TOO_MUCH: Final = (
    f"takes more than {MAX_CPU_S} s or {MAX_MEMORY_BYTES} bytes of memory for a short conversation"
)
_TOO_LONG: Final = f"writes more than {MAX_OUTPUT_CHARS} characters for a short conversation"
_TOKENS: Final = {"bos_token": "<s>", "eos_token": "</s>"}
_USER: Final = {"role": "user", "content": "Hello"}
_ASSISTANT: Final = {"role": "assistant", "content": "Hello, how can I help?"}
_SYSTEM: Final = {"role": "system", "content": "You are helpful."}
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_CONVERSATIONS: Final[tuple[dict[str, Any], ...]] = (
    {"messages": [_USER]},
    {"messages": [_SYSTEM, _USER, _ASSISTANT, _USER]},
    {"messages": [_SYSTEM, *[_USER, _ASSISTANT] * 32, _USER], "enable_thinking": True},
    {"messages": [_SYSTEM, _USER], "tools": [_TOOL]},
)


def check_templates(files: Mapping[str, bytes]) -> None:
    """Refuse a model with a template that is none, reaches out of its sandbox, or explodes."""
    for name, template in _templates(files):
        if wrong := _error_of(template):
            raise ConversionError(f"{name}: the chat template {wrong}", field=name)


def _templates(files: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    if TEMPLATE_NAME in files:
        try:
            yield TEMPLATE_NAME, files[TEMPLATE_NAME].decode()
        except UnicodeDecodeError as error:
            raise ConversionError(
                f"{TEMPLATE_NAME} is not valid UTF-8: {error}", field=TEMPLATE_NAME
            ) from error
    name = "tokenizer_config.json"
    if name not in files:
        return
    found = parse_json_object(files[name], name=name).get("chat_template")
    several = found if isinstance(found, list) else [] if found is None else [found]
    if len(several) > MAX_TEMPLATES:
        raise ConversionError(
            f"{name} has {len(several)} chat templates; at most {MAX_TEMPLATES} are read",
            field="chat_template",
        )
    for each in several:
        template = each.get("template") if isinstance(each, dict) else each
        if not isinstance(template, str):
            raise ConversionError(
                f"{name}: chat_template is neither a text nor a list of named texts",
                field="chat_template",
            )
        yield name, template


@lru_cache(maxsize=64)
def _error_of(template: str) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=template.encode("utf-8", errors="surrogatepass"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_MAX_WALL_S,
        )
    except subprocess.TimeoutExpired:
        return _TOO_MUCH
    return done.stdout.decode(errors="replace") if done.returncode == 0 else _TOO_MUCH


class _Generation(Extension):
    """The block in which templates mark what a model wrote."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """As the one that the engine's tokenizer renders in."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _what_is_wrong(source: str) -> str:
    try:
        template = _environment().from_string(source)
        for conversation in _CONVERSATIONS:
            n_chars = 0
            try:
                for part in template.generate(
                    **conversation, add_generation_prompt=True, **_TOKENS
                ):
                    n_chars += len(part)
                    if n_chars > MAX_OUTPUT_CHARS:
                        return _TOO_LONG
            except (SecurityError, MemoryError, RecursionError):
                raise
            except Exception:  # noqa: BLE001, S112 - it may refuse a conversation, in its own ways
                continue
    except TemplateSyntaxError as error:
        return f"is not valid: {error.message} (line {error.lineno})"
    except SecurityError as error:
        return f"reaches out of its sandbox: {error}"
    except (MemoryError, RecursionError, OverflowError):
        return _TOO_MUCH
    except Exception as error:  # noqa: BLE001 - Jinja's compiler has more ways to fail than it says
        return f"is not valid: {error}"
    return ""


def _bound(kind: int, most: int) -> None:
    """Lower a limit; the converter that started us may have a lower one already."""
    _, hard = resource.getrlimit(kind)
    bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (bound, bound))


def main() -> None:
    """Answer about one template."""
    _bound(resource.RLIMIT_AS, MAX_MEMORY_BYTES)
    _bound(resource.RLIMIT_CPU, MAX_CPU_S)
    _bound(resource.RLIMIT_CORE, 0)
    source = sys.stdin.buffer.read().decode("utf-8", errors="surrogatepass")
    sys.stdout.write(_what_is_wrong(source)[:300])


if __name__ == "__main__":
    main()
