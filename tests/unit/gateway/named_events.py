"""Streams whose events bear names: what is in one, and the result that ends it."""

import json
from typing import Any

from apps.engines.types import FinishReason, GenerationResult


def events_of(data: bytes) -> list[dict[str, Any]]:
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        name, _, line = block.partition("\n")
        event = json.loads(line.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def result(finish_reason: FinishReason = "stop") -> GenerationResult:
    return GenerationResult(
        finish_reason=finish_reason, n_prompt_tokens=5, n_cached_tokens=4, n_completion_tokens=6
    )
