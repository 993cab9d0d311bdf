"""What the rounds come to: medians, ratios to ours, and whether the targets are met."""

import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.workload import Measure, median_of

OURS: Final = "ours"
# Greedy answers to random prompts repeat themselves, which flatters speculation: so once without.
OURS_PLAIN: Final = "ours, no drafts"
INT8_PLAIN: Final = "ours int8, no drafts"
Rounds = Mapping[int, list[Measure]]


@dataclass(frozen=True, slots=True)
class Target:
    """The ratio of two medians of one figure, ours above theirs, at a level."""

    subject: str
    peer: str
    level: int
    figure: str
    least: float | None = None
    most: float | None = None

    def is_met(self, ratio: float) -> bool:
        return (self.least is None or ratio >= self.least) and (
            self.most is None or ratio <= self.most
        )

    def __str__(self) -> str:
        bound = f">= {self.least}" if self.least is not None else f"<= {self.most}"
        return f"{self.figure} of {self.subject} {bound} x {self.peer} at {self.level}"


TARGETS: Final = (
    *(
        target
        for ours in (OURS, OURS_PLAIN)
        for target in (
            *(Target(ours, "vLLM", level, "tokens_per_s", least=1.4) for level in (1, 8, 32)),
            Target(ours, "vLLM", 64, "tokens_per_s", least=1.25),
            *(Target(ours, "vLLM", level, "ttft_ms", most=1.0) for level in (1, 8, 32, 64)),
        )
    ),
    Target(OURS, "llama.cpp", 1, "tokens_per_s", least=1.2),
    *(Target(OURS, "llama.cpp", level, "tokens_per_s", least=2.0) for level in (8, 32)),
    Target(INT8_PLAIN, OURS_PLAIN, 1, "tokens_per_s", least=1.4),
    Target("product, HTTP", "product, engine", 32, "tokens_per_s", least=0.85),
    Target("product, HTTP", "vLLM, HTTP", 32, "tokens_per_s", least=1.3),
)


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    said = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "model": said.get("model name", ""),
        "cpu_count": os.cpu_count(),
        "flags": [flag for flag in wanted if flag in said.get("flags", "").split()],
    }


def figures(measures: Mapping[str, Rounds]) -> dict[str, Any]:
    """Return by level and system the medians, and the tokens a second of each round."""
    levels = sorted({level for rounds in measures.values() for level in rounds})
    return {
        str(level): {
            name: {
                **{key: round(value, 2) for key, value in asdict(median_of(found)).items()},
                "tokens_per_s_by_round": [round(m.tokens_per_s, 1) for m in found],
            }
            for name, rounds in measures.items()
            if (found := rounds.get(level))
        }
        for level in levels
    }


def ratio(measures: Mapping[str, Rounds], target: Target) -> dict[str, Any] | None:
    """Return a target with what was reached; None where a side was not measured."""
    ours, theirs = (
        [getattr(m, target.figure) for m in measures.get(name, {}).get(target.level, ())]
        for name in (target.subject, target.peer)
    )
    if not ours or not theirs:
        return None
    reached = statistics.median(ours) / statistics.median(theirs)
    return {
        "target": str(target),
        "ratio": round(reached, 3),
        # A system that dropped out has fewer rounds than the others.
        "by_round": [round(a / b, 3) for a, b in zip(ours, theirs, strict=False)],
        "met": target.is_met(reached),
    }


def summary(
    measures: Mapping[str, Rounds],
    *,
    n_rounds: int,
    how: Mapping[str, str],
    failed: Mapping[str, str],
    agreement: Mapping[str, Any],
) -> dict[str, Any]:
    reached = [ratio(measures, target) for target in TARGETS]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "workload": "SmolLM2-135M-Instruct, prompts of 32-128 random ids, 128 tokens, greedy",
        "rounds": n_rounds,
        "systems": dict(how),
        "failed": dict(failed),
        "levels": figures(measures),
        "targets": [found for found in reached if found is not None],
        "same_tokens_as_ours": dict(agreement),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the summary for a terminal."""
    lines = ["at once                          tokens/s   TTFT ms       p95   ITL ms  worst"]
    for level, systems in result["levels"].items():
        lines += [
            f"{level:>7}  {name:22} {m['tokens_per_s']:9.1f} {m['ttft_ms']:9.1f} "
            f"{m['ttft_p95_ms']:9.1f} {m['itl_ms']:8.1f} {m['itl_worst_ms']:6.0f}"
            for name, m in systems.items()
        ]
    lines += [
        f"{'met ' if found['met'] else 'MISS'} {found['ratio']:6.2f}  {found['target']}"
        for found in result["targets"]
    ]
    agreement = result["same_tokens_as_ours"]
    lines += [f"same tokens as {name}: {found}" for name, found in agreement.items()]
    lines += [f"no figures of {name}: {why}" for name, why in result["failed"].items()]
    return "\n".join(lines)
