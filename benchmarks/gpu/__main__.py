"""Proves and measures the engine on the GPU of this machine, in under ten minutes.

    python -m benchmarks.gpu [--parts roofline,tests,...] [--budget-s 570]

Needs torch, triton, transformers, safetensors, numpy and pytest; what else is needed is installed
for the run from a folder of wheels. Each part is a process of its own with a bound on its time, and
one that fails leaves the others. Figures go to benchmarks/results/gpu.json, and to $OUT if set; a
table comes last. With --device cpu a tiny model and short workloads show that all fits together.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu import report, wheels
from benchmarks.gpu.gpu_tests import run_tests
from benchmarks.gpu.processes import last_fault, measure, run_python
from benchmarks.gpu.shape import QWEN3_0_6B, TINY
from benchmarks.gpu.workload import FULL, SMALL, workloads

ROOT: Final = Path(__file__).resolve().parents[2]
RESULT: Final = ROOT / "benchmarks" / "results" / "gpu.json"
PARTS: Final = ("roofline", "tests", "attention", "micro", "single", "engine", "peers", "product")
BUDGET_S: Final = 570.0
MIN_LEFT_S: Final = 5.0
# The longest that each may take, whatever is left.
LIMITS_S: Final = {
    "model": 60.0,
    "roofline": 45.0,
    "tests": 150.0,
    "attention": 90.0,
    "micro": 60.0,
    "ours": 150.0,
    "nano_vllm": 180.0,
    "transformers": 120.0,
    "product": 150.0,
}
SINGLE: Final = ("1 stream",)
ENGINE: Final = (
    "nano-vllm", "8 streams", "64 streams", "512 streams", "8k prompt", "shared prefix",
)  # fmt: skip
# nano-vllm has no more than 4,096 tokens of context.
NANO_VLLM: Final = ("nano-vllm", "1 stream", "64 streams", "8 streams", "512 streams")
TRANSFORMERS: Final = ("1 stream", "8 streams", "64 streams", "nano-vllm")
# Of its time, what it takes to start and to end; what has not ended by then is left out.
TRANSFORMERS_RESERVE_S: Final = 15.0


class Check:
    """One run of the command: what was found so far, and how much time is left."""

    def __init__(self, options: argparse.Namespace, *, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._ends_s = time.monotonic() + options.budget_s
        self._is_small = options.device == "cpu"
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        self._paths = [str(ROOT)]
        self.result: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "model": self._shape.name,
        }

    @property
    def _shape(self) -> Any:
        return TINY if self._is_small else QWEN3_0_6B

    def run(self) -> None:
        paths, said = wheels.install(self._options.wheels, target=self._folder / "site")
        print(said, flush=True)
        self._paths += map(str, paths)
        self._env["PYTHONPATH"] = os.pathsep.join(self._paths)
        parts = self._options.parts
        for name, part in self._parts().items():
            if name in parts:
                started_s = time.monotonic()
                print(f"-- {name}", flush=True)
                part()
                print(f"-- {name}: {time.monotonic() - started_s:.0f} s", flush=True)
        self._conclude()

    def _parts(self) -> dict[str, Callable[[], None]]:
        """Ours runs once, whether for one of its parts or for both."""
        ours = "single" if "single" in self._options.parts else "engine"
        return {
            "roofline": lambda: self._measure("roofline", module="rates"),
            "tests": self._tests,
            "attention": lambda: self._measure("attention", module="attention"),
            "micro": lambda: self._measure("micro", module="micro"),
            ours: self._ours,
            "peers": self._peers,
            "product": self._product,
        }

    def _left_s(self, limit_name: str) -> float:
        return min(LIMITS_S[limit_name], self._ends_s - time.monotonic())

    def _has_time(self, name: str) -> bool:
        if self._left_s(name) >= MIN_LEFT_S:
            return True
        self.result[name] = {"failed": "no time was left for it"}
        return False

    def _measure(self, name: str, *, module: str, options: tuple[str, ...] = ()) -> None:
        if not self._has_time(name):
            return
        self.result[name] = measure(
            module,
            ["--device", self._options.device, *options],
            timeout_s=self._left_s(name),
            env=self._env,
            folder=self._folder,
        )
        print(json.dumps(self.result[name], indent=1), flush=True)

    def _tests(self) -> None:
        if self._has_time("tests"):
            self.result["tests"] = run_tests(
                timeout_s=self._left_s("tests"), env=self._env, folder=self._folder
            )

    def _ours(self) -> None:
        chosen = [
            *(SINGLE if "single" in self._options.parts else ()),
            *(ENGINE if "engine" in self._options.parts else ()),
        ]
        self._measure_model("ours", module="ours", chosen=tuple(chosen))

    def _peers(self) -> None:
        peers = self._options.peers
        if self._is_small:
            self.result["nano_vllm"] = {"left_out": "for a GPU"}
        elif (peers / "nano-vllm" / "nanovllm").is_dir():
            self._measure_model(
                "nano_vllm", module="nano_vllm", chosen=NANO_VLLM, options=("--peers", str(peers))
            )
        else:
            self.result["nano_vllm"] = {"left_out": f"no nano-vllm in {peers}: make gpu-peers"}
        limit_s = max(MIN_LEFT_S, self._left_s("transformers") - TRANSFORMERS_RESERVE_S)
        self._measure_model(
            "transformers",
            module="drive_transformers",
            chosen=TRANSFORMERS,
            options=("--limit-s", str(limit_s)),
        )

    def _product(self) -> None:
        fault = self._make_model()
        if fault is not None:
            self.result["product"] = {"failed": f"no model: {fault}"}
            return
        words = ("--model-dir", str(self._model_dir), *(("--small",) if self._is_small else ()))
        self._measure("product", module="product", options=words)

    def _measure_model(
        self, name: str, *, module: str, chosen: tuple[str, ...], options: tuple[str, ...] = ()
    ) -> None:
        fault = self._make_model()
        if fault is not None:
            self.result[name] = {"failed": f"no model: {fault}"}
            return
        words = ["--model-dir", str(self._model_dir), "--workloads", *chosen]
        words += ["--small"] if self._is_small else []
        self._measure(name, module=module, options=(*words, *options))

    @property
    def _model_dir(self) -> Path:
        """Its name tells engines what to call it."""
        return self._folder / self._shape.name

    def _make_model(self) -> str | None:
        """Make the model unless it is there; return what went wrong."""
        if self._model_dir.exists():
            return None
        log = self._folder / "model.log"
        words = ["-m", "benchmarks.gpu.model", "--shape", self._shape.name]
        words += ["--device", self._options.device, str(self._model_dir)]
        status, took_s = run_python(words, timeout_s=self._left_s("model"), env=self._env, log=log)
        self.result["model_s"] = round(took_s, 1)
        if status == 0:
            return None
        shutil.rmtree(self._model_dir, ignore_errors=True)
        return "its time ran out" if status is None else last_fault(log)

    def _conclude(self) -> None:
        rates = report.rates_of(self.result)
        if rates is not None:
            known = workloads(SMALL if self._is_small else FULL)
            self.result["workloads"] = report.floors(known, shape=self._shape, rates=rates)
        self.result["derived"] = report.derive(self.result)
        found = report.verdicts(self.result, self.result["derived"])
        self.result["verdicts"] = report.as_dicts(found)

    @property
    def is_green(self) -> bool:
        """Whether all that was asked for ran, and nothing that must be met was not; a small run
        says nothing of speed."""
        ran = all("failed" not in part for part in self.result.values() if isinstance(part, dict))
        return ran and (
            self._is_small or all(v["is_met"] is not False for v in self.result["verdicts"])
        )


def write(result: dict[str, Any], *, output: Path | None) -> None:
    text = json.dumps(result, indent=1) + "\n"
    if output is not None:
        output.write_text(text)
    if out := os.environ.get("OUT"):
        (Path(out) / "gpu.json").write_text(text)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=_parts, default=PARTS, help=",".join(PARTS))
    parser.add_argument("--budget-s", type=float, default=BUDGET_S)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl")
    parser.add_argument("--peers", type=Path, default=ROOT / ".whl")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/gpu.json, of a whole run on a GPU"
    )
    options = parser.parse_args()
    if options.output is None and options.device != "cpu" and options.parts == PARTS:
        options.output = RESULT
    options.wheels, options.peers = options.wheels.resolve(), options.peers.resolve()
    return options


def _parts(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    if unknown := sorted(set(chosen) - set(PARTS)):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown)}")
    return chosen


def main() -> None:
    options = read_options()
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("torch sees no GPU here; --device cpu shows that everything fits together")
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        check = Check(options, folder=Path(folder))
        check.run()
    write(check.result, output=options.output)
    print("\n" + report.table(check.result), flush=True)
    sys.exit(not check.is_green)


if __name__ == "__main__":
    main()
