"""Who is in which arm, at size: shares as they were set, two experiments that know nothing of each
other, and after a change of weights only the subjects elsewhere that must be; then what it costs.

    python -m benchmarks.experiments.assignment [--subjects 1000000]

The salts are fixed, so that the figures come out the same each time.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any, Final

import django

from apps.experiments.assigning import N_SLOTS, subject_digest, subject_slot, variant_of

RESULT: Final = Path(__file__).parents[1] / "results" / "assignment.json"
LAYER_SALT: Final = "3d9f1b7a55c04e8f9a6b20c1d4e7f803"
FIRST_SALT: Final = "0f4c2a9be1d84f6f8c3a5b7d9e102f34"
SECOND_SALT: Final = "a7e5d3c1b90f48e6b2d4f6081a3c5e70"
FIRST: Final = {1: 50, 2: 30, 3: 20}
SECOND: Final = {4: 60, 5: 25, 6: 15}
SHARE_OFF: Final = 0.002  # of all subjects, at most
LEAST_P: Final = 0.01
# What becomes of the first one's weights. The first four change one weight at most.
CHANGES: Final = {
    "one grows": {1: 50, 2: 30, 3: 40},
    "one shrinks": {1: 50, 2: 30, 3: 5},
    "one is new": {1: 50, 2: 30, 3: 20, 7: 25},
    "all double": {1: 100, 2: 60, 3: 40},
    "two change": {1: 25, 2: 60, 3: 20},
}


def measured(n_subjects: int) -> dict[str, Any]:
    """Return every figure of the assignment of so many subjects."""
    names = [f"user-{number}" for number in range(n_subjects)]
    first, digests = _arms(names, FIRST_SALT, FIRST)
    second, _ = _arms(names, SECOND_SALT, SECOND)
    slots = [
        subject_slot(layer_salt=LAYER_SALT, kind="end_user", tenant_id=1, identifier=name)
        for name in names
    ]
    quarter = sum(slot < N_SLOTS // 4 for slot in slots) / n_subjects
    in_quarter = [arm for arm, slot in zip(first, slots, strict=True) if slot < N_SLOTS // 4]
    return {
        "subjects": n_subjects,
        "digests that two subjects share": n_subjects - len(set(digests)),
        "shares": {"first": _shares(first, FIRST), "second": _shares(second, SECOND)},
        "most off": max(_off(first, FIRST), _off(second, SECOND)),
        "a quarter of the slots": quarter,
        "most off within a quarter of the slots": _off(in_quarter, FIRST),
        "independence of two experiments, p": independence_p(first, second),
        "independence of arm and slot, p": independence_p(
            first, [slot * 9 // N_SLOTS for slot in slots]
        ),
        "changes": {said: _moved(digests, first, weights) for said, weights in CHANGES.items()},
    }


def misses(found: dict[str, Any]) -> list[str]:
    """Return what is not as it must be."""
    missed = []
    if (off := found["most off"]) > SHARE_OFF:
        missed.append(f"an arm is {off:.4%} of all subjects off its share")
    missed += [
        f"{said} is {found[said]:.4f}"
        for said in found
        if said.startswith("independence") and found[said] <= LEAST_P
    ]
    for said, change in found["changes"].items():
        if change["moved that need not"]:
            missed.append(f"{said}: {change['moved that need not']} subjects moved for nothing")
    return missed


def independence_p(first: Sequence[int], second: Sequence[int]) -> float:
    """Return the p-value of Pearson's chi-square test that two labels of the same subjects are
    independent. The degrees of freedom have to be even, for which there is a closed form."""
    rows, columns, cells = Counter(first), Counter(second), Counter(zip(first, second, strict=True))
    statistic = 0.0
    for row, n_row in rows.items():
        for column, n_column in columns.items():
            expected = n_row * n_column / len(first)
            statistic += (cells[row, column] - expected) ** 2 / expected
    freedom = (len(rows) - 1) * (len(columns) - 1)
    assert freedom % 2 == 0
    term = whole = 1.0
    for step in range(1, freedom // 2):
        term *= statistic / 2 / step
        whole += term
    return exp(-statistic / 2) * whole


def _arms(names: Sequence[str], salt: str, weights: dict[int, int]) -> tuple[list[int], list[str]]:
    digests = [
        subject_digest(salt=salt, kind="end_user", tenant_id=1, identifier=name) for name in names
    ]
    return [variant_of(salt=salt, subject=each, weights=weights) for each in digests], digests


def _shares(arms: Sequence[int], weights: dict[int, int]) -> dict[str, list[float]]:
    """Return what each arm was to get and what it got."""
    whole, counts = sum(weights.values()), Counter(arms)
    return {str(arm): [weight / whole, counts[arm] / len(arms)] for arm, weight in weights.items()}


def _off(arms: Sequence[int], weights: dict[int, int]) -> float:
    return max(abs(got - wanted) for wanted, got in _shares(arms, weights).values())


def _moved(
    digests: Sequence[str], before: Sequence[int], weights: dict[int, int]
) -> dict[str, Any]:
    """Return who moves when the first one's weights become these.

    Where one weight grows, all who move have to come to its arm; where one shrinks, all have to
    come from it; where none changes beside the others, nobody moves.
    """
    after = [variant_of(salt=FIRST_SALT, subject=each, weights=weights) for each in digests]
    pairs = Counter(pair for pair in zip(before, after, strict=True) if pair[0] != pair[1])
    scale = weights[1] / FIRST[1] if len(set(_ratios(weights))) == 1 else 1.0
    grown = {arm for arm, weight in weights.items() if weight > scale * FIRST.get(arm, 0)}
    shrunk = {arm for arm, weight in weights.items() if weight < scale * FIRST.get(arm, 0)}
    must = sum(n for (old, new), n in pairs.items() if new in grown or old in shrunk)
    return {
        "weights": weights,
        "moved": sum(pairs.values()) / len(digests),
        "least possible": _distance(weights),
        "moved that need not": sum(pairs.values()) - must,
    }


def _ratios(weights: dict[int, int]) -> list[float]:
    return [weights[arm] / FIRST[arm] for arm in FIRST] if weights.keys() == FIRST.keys() else []


def _distance(weights: dict[int, int]) -> float:
    """Return the share of subjects that any assignment has to move: what arms gain in all."""
    old, new = sum(FIRST.values()), sum(weights.values())
    gains = (weights[arm] / new - FIRST.get(arm, 0) / old for arm in weights)
    return sum(gain for gain in gains if gain > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=1_000_000)
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.development")
    django.setup()
    from benchmarks.experiments.enrolment_cost import costs  # types of rooms need the settings

    found = measured(options.subjects)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu_count": os.cpu_count(),
        "missed": misses(found),
        **found,
        "microseconds of an enrolment": costs(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(bool(result["missed"]))


if __name__ == "__main__":
    main()
