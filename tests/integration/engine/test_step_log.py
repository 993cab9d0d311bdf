"""What an engine says of its steps, in numbers and as a trace."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.backends.step_log import PHASES
from engine_service.config import EngineConfig
from engine_service.errors import ModelError
from engine_service.protocol import SamplingParams
from tests.waiting import wait_until


def run_two_requests(backend: NativeBackend) -> None:
    for key in range(2):
        backend.add(
            EngineRequest(
                key=key,
                prompt_token_ids=tuple(range(3, 43)),
                sampling=SamplingParams(temperature=0.0, ignore_eos=True),
                max_new_tokens=6,
            )
        )
    while backend.has_work():
        backend.step()


def test_the_last_steps_are_summed_up(model_dir: Path) -> None:
    backend = NativeBackend(EngineConfig(model_dir=model_dir, dtype="float32", speculation="off"))
    assert backend.stats().steps is None
    run_two_requests(backend)
    stats = backend.stats()
    steps = stats.steps
    assert steps is not None
    assert steps.n_steps == stats.n_steps
    # The prompts, then of both all tokens but the first.
    assert steps.mean_decode_tokens * steps.n_steps == pytest.approx(10)
    assert steps.mean_prefill_tokens * steps.n_steps == pytest.approx(
        stats.n_prompt_tokens - stats.n_cached_tokens
    )
    parts = [getattr(steps, f"{name}_ms") for name in PHASES]
    assert all(0.0 < part.median <= part.worst for part in parts)
    assert max(part.worst for part in parts) <= steps.step_ms.worst
    assert 0.0 <= steps.wait_ms.median <= steps.wait_ms.worst


def test_a_trace_has_every_step_with_its_parts_inside(model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    backend = NativeBackend(EngineConfig(model_dir=model_dir, dtype="float32", trace=path))
    run_two_requests(backend)
    n_steps = backend.stats().n_steps

    def events() -> list[dict[str, Any]]:
        text = path.read_text()
        whole = text[: text.rfind(",\n")] if ",\n" in text else "["
        return list(json.loads(whole + "]"))

    def steps() -> list[dict[str, Any]]:
        return [event for event in events() if event["name"] == "step"]

    wait_until("all steps in the file", lambda: len(events()) == n_steps * (3 + len(PHASES)))
    for step in steps():
        end = step["ts"] + step["dur"]
        parts = [
            event
            for event in events()
            if event["name"] in PHASES and step["ts"] <= event["ts"] < end
        ]
        assert [part["name"] for part in parts] == list(PHASES)
        assert all(part["ts"] + part["dur"] <= end + 1.0 for part in parts)
        assert sum(part["dur"] for part in parts) == pytest.approx(step["dur"], abs=1.0)
    assert sum(step["args"]["prefill tokens"] for step in steps()) >= 40


def test_a_trace_that_cannot_be_written_stops_the_start(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trace: cannot write"):
        NativeBackend(EngineConfig(model_dir=model_dir, trace=tmp_path / "none" / "file"))
