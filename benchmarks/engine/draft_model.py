"""Guesses by a draft model against plain decoding, on the same engine code.

    python -m benchmarks.engine.draft_model MODEL_DIR [--rounds 3] [--n-tokens 96] [--n-more 60]

The target is the model with ``n-more`` layers that cost what layers cost and change nothing, so
that the model itself can guess for it (``deep_model``): as it is, and with noise in its weights,
with which it agrees less often. Prompts are random tokens, continued by draws at temperature 1, so
that no prompt lookup would help. Rounds alternate with plain decoding; both must give the same
tokens. A closed loop, as in ``speculation``.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.engine.deep_model import deepened, noisy
from benchmarks.engine.speculation import compare
from engine_service.backends.native import NativeBackend
from engine_service.config import EngineConfig

RESULT: Final = Path(__file__).parents[1] / "results" / "draft_model.json"
NOISES: Final = (0.0, 0.1, 1.0)
BATCHES: Final = (1, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n-tokens", type=int, default=96)
    parser.add_argument("--n-more", type=int, default=60)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "layers added to the target": args.n_more,
        "rounds": args.rounds,
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        target_dir = deepened(args.model_dir, Path(scratch) / "target", n_more=args.n_more)
        for noise in NOISES:
            draft_dir = noisy(args.model_dir, Path(scratch) / f"noise-{noise}", share=noise)
            # Both anew: what one knows of the prompts of another noise, the other would not.
            backends = {
                "off": _backend(target_dir, speculation="off"),
                "draft": _backend(target_dir, draft_model_dir=draft_dir),
            }
            result["kernels"] = backends["off"].info.kernels
            for n in BATCHES:
                case = compare(backends, "random", n=n, n_requests=3 * n, args=args)
                result["cases"][f"noise {noise}, {n} at once"] = case
                print(f"noise {noise}, {n} at once: {case}", flush=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def _backend(model_dir: Path, **settings: Any) -> NativeBackend:
    return NativeBackend(EngineConfig(model_dir=model_dir, dtype="bfloat16", **settings))


if __name__ == "__main__":
    main()
