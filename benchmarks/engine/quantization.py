"""What int8 weights cost in quality: the model's own view of a text, beside bfloat16's.

    python -m benchmarks.engine.quantization MODEL_DIR [--text FILE]

Both score every token of the text behind its true predecessors. Agreement is how often their best
next tokens are the same one.
"""

import argparse
import json
import math
import time
from pathlib import Path

from tokenizers import Tokenizer

from engine_service.backends.base import EngineRequest
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig, QuantizationName
from engine_service.protocol import SamplingParams, TokenLogprob

TEXT = Path(__file__).with_name("prose.txt")
RESULT = Path(__file__).parents[1] / "results" / "quantization.json"
WINDOW = 512


def scores(
    model_dir: Path, *, token_ids: list[int], quantization: QuantizationName
) -> tuple[list[TokenLogprob], str]:
    """Score windows of the text, each on its own; also says which kernels did."""
    backend = NativeBackend(
        EngineConfig(
            model_dir=model_dir, dtype="bfloat16", kernels="compiled", quantization=quantization
        )
    )
    for start in range(0, len(token_ids), WINDOW):
        backend.add(
            EngineRequest(
                key=start,
                prompt_token_ids=tuple(token_ids[start : start + WINDOW]),
                sampling=SamplingParams(temperature=0.0, prompt_logprobs=1),
                max_new_tokens=1,
            )
        )
    found: dict[int, list[TokenLogprob]] = {}
    while backend.has_work():
        for output in backend.step():
            found.setdefault(output.key, []).extend(output.prompt_logprobs)
    return [entry for key in sorted(found) for entry in found[key]], backend.info.kernels


def perplexity(entries: list[TokenLogprob]) -> float:
    return math.exp(-sum(entry.logprob for entry in entries) / len(entries))


def compare(model_dir: Path, *, text: str) -> dict[str, str | float]:
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    token_ids = tokenizer.encode(text).ids
    plain, kernels = scores(model_dir, token_ids=token_ids, quantization="none")
    quantized, _ = scores(model_dir, token_ids=token_ids, quantization="int8")
    n_equal = sum(a.top[0][0] == b.top[0][0] for a, b in zip(plain, quantized, strict=True))
    before, after = perplexity(plain), perplexity(quantized)
    return {
        "model": model_dir.name,
        "kernels": kernels,
        "n_tokens": len(plain),
        "agreement": round(n_equal / len(plain), 4),
        "perplexity_bfloat16": round(before, 3),
        "perplexity_int8": round(after, 3),
        "perplexity_ratio": round(after / before, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--text", type=Path, default=TEXT)
    options = parser.parse_args()
    figures = compare(options.model_dir, text=options.text.read_text())
    print(figures)
    RESULT.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
