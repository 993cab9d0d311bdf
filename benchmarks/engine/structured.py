"""Answers that are held to a schema beside free ones, on the same engine.

    python -m benchmarks.engine.structured [--rounds 10] [--n-tokens 128]

Rounds alternate the two in one process. Both draw at temperature 1 from the same random prompts and
make the same number of tokens: the schemas ask for more than those. Each round uses another schema;
in ten rounds each goes first once and second once.
"""

import argparse
import json
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from benchmarks.engine.speculation import make_requests, run
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig
from engine_service.grammar.checker import TokenizerSpec
from engine_service.grammar.compiler import Constraint, GrammarCompiler
from engine_service.protocol import OutputFormat
from engine_service.tokenizer import load_tokenizer
from tests.models import smollm2_dir

RESULT: Final = Path(__file__).parents[1] / "results" / "structured.json"
BATCHES: Final = (1, 8, 32)
REQUESTS_PER_PLACE: Final = 2
_PERSON: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "role": {"enum": ["owner", "admin", "operator", "viewer"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    },
    "required": ["name", "age", "role", "tags"],
    "additionalProperties": False,
}
ITEMS: Final[dict[str, dict[str, Any]]] = {
    "string": {"type": "string"},
    "object": _PERSON,
    "number": {"type": "number"},
    "pattern": {"type": "string", "pattern": "[a-z]{2,12}( [a-z]{2,12}){0,5}"},
    "anyOf": {"anyOf": [{"type": "boolean"}, {"type": "string", "format": "date"}, _PERSON]},
}


def schema(item: dict[str, Any]) -> str:
    """Return a schema that no answer of the benchmark is long enough to satisfy."""
    return json.dumps({"type": "array", "items": item, "minItems": 2_000})


def compare(
    backend: NativeBackend, constraints: dict[str, Constraint], *, n: int, args: Any
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"free": [], "held": []}
    names = list(constraints)
    for round_ in range(args.rounds + 1):  # the first is a warm-up
        for name in ("free", "held") if round_ % 2 else ("held", "free"):
            requests = make_requests(
                "random",
                n=n * REQUESTS_PER_PLACE,
                n_tokens=args.n_tokens,
                vocab_size=backend.info.vocab_size,
                seed=random.Random(round_).randrange(2**31),
            )
            # Each run has its prompts to itself: else the second of a round finds the first's.
            requests = [replace(each, cache_salt=f"{n} {name}") for each in requests]
            if name == "held":
                constraint = constraints[names[round_ % len(names)]]
                requests = [
                    replace(
                        each,
                        mask=constraint.mask(),
                        sampling=structs.replace(each.sampling, ignore_eos=False),
                    )
                    for each in requests
                ]
            found = run(backend, requests, n_at_once=n)
            if round_:
                rates[name].append(found.tokens_per_s)
    ratios = [held / free for held, free in zip(rates["held"], rates["free"], strict=True)]
    by_schema: dict[str, list[float]] = {}
    for round_, ratio in enumerate(ratios, start=1):
        by_schema.setdefault(names[round_ % len(names)], []).append(round(ratio, 3))
    return {
        "free_tokens_per_s": round(statistics.median(rates["free"]), 1),
        "held_tokens_per_s": round(statistics.median(rates["held"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": by_schema,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--n-tokens", type=int, default=128)
    args = parser.parse_args()
    model_dir = smollm2_dir()
    backend = NativeBackend(EngineConfig(model_dir=model_dir))
    compiler = GrammarCompiler(
        TokenizerSpec(
            tokenizer=load_tokenizer(model_dir).backend_tokenizer.to_str(),
            vocab_size=backend.info.vocab_size,
            eos_token_ids=tuple(backend.info.eos_token_ids),
        )
    )
    constraints = {}
    for name, item in ITEMS.items():
        constraint = compiler.constraint(
            output_format=OutputFormat(json_schema=schema(item)),
            tool_use=None,
            tool_format=None,
            reasoning="off",
        )
        assert constraint is not None
        constraints[name] = constraint
    result: dict[str, Any] = {"kernels": backend.info.kernels, "rounds": args.rounds}
    for n in BATCHES:
        result[f"{n} at once"] = found = compare(backend, constraints, n=n, args=args)
        print(f"{n} at once: {found}", flush=True)
    compiler.close()
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
