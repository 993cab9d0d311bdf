"""Turns the report of a proving test run into the figures that are kept.

    python -m benchmarks.proof REPORT.xml RESULT.json

What a test prints about itself (near-ties, seconds to recover, memory) stands beside its outcome.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def outcome(case: ElementTree.Element) -> str:
    return next(
        (tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), "passed"
    )


def figures(case: ElementTree.Element) -> list[str]:
    """Return the lines that the test itself printed, without pytest's own headings."""
    lines = (case.findtext("system-out") or "").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("---")]


def summary(report: Path) -> dict[str, Any]:
    cases = ElementTree.parse(report).getroot().iter("testcase")
    tests = [
        {
            "test": f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}",
            "outcome": outcome(case),
            "seconds": round(float(case.get("time", "0")), 1),
            **({"said": said} if (said := figures(case)) else {}),
        }
        for case in cases
    ]
    counts = {
        kind: sum(t["outcome"] == kind for t in tests) for kind in {t["outcome"] for t in tests}
    }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "counts": counts,
        "tests": tests,
    }


def main() -> None:
    report, result = map(Path, sys.argv[1:])
    found = summary(report)
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for test in found["tests"]:
        for line in test.get("said", ()):
            print(f"{test['test'].rsplit('::', 1)[-1]}: {line}")
    print(", ".join(f"{n} {kind}" for kind, n in found["counts"].items()))


if __name__ == "__main__":
    main()
