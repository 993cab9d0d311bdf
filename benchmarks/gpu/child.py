"""What the processes that measure have in common: options in, figures out, written as they come so
that what was measured before a time-out or a fault is kept."""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.workload import FULL, SMALL, Scale


class Child:
    """Figures by name in a file, which is whole at any time."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._found: dict[str, Any] = {}

    def put(self, name: str, value: Any) -> None:
        self._found[name] = value
        partial = self._output.with_suffix(".part")
        partial.write_text(json.dumps(self._found))
        partial.replace(self._output)
        print(f"{name}: {value}", flush=True)


def child_options(
    description: str | None,
    *,
    runs_model: bool = False,
    brings_peers: bool = False,
    is_bounded: bool = False,
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    if runs_model:
        parser.add_argument("--model-dir", type=Path, required=True)
        parser.add_argument("--small", action="store_true")
        parser.add_argument("--workloads", nargs="+", required=True)
    if brings_peers:
        parser.add_argument("--peers", type=Path, required=True)
    if is_bounded:
        parser.add_argument("--limit-s", type=float, required=True)
    return parser.parse_args()


def scale_of(options: argparse.Namespace) -> Scale:
    return SMALL if options.small else FULL
