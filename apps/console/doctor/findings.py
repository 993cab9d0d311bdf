"""What a check says, and how checks are run: side by side, each with a deadline, so that none can
hide what the others found."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from django.db import DatabaseError, InterfaceError, connections

Status = Literal["ok", "warning", "failure"]

DEADLINE_S: Final = 15.0
_WORSE: Final[tuple[Status, ...]] = ("ok", "warning", "failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """name: of what. seen: in words. remedy: what to do; empty where all is well."""

    name: str
    status: Status
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """look: says what it found; may raise. remedy: for when it could not look at all.

    needs_database: it is of no use to look without one.
    """

    name: str
    look: Callable[[], Iterable[Finding]]
    remedy: str
    needs_database: bool = False


def ok(name: str, seen: str) -> Finding:
    return Finding(name=name, status="ok", seen=seen)


def warning(name: str, seen: str, remedy: str) -> Finding:
    return Finding(name=name, status="warning", seen=seen, remedy=remedy)


def failure(name: str, seen: str, remedy: str) -> Finding:
    return Finding(name=name, status="failure", seen=seen, remedy=remedy)


def worst(findings: Iterable[Finding]) -> Status:
    return max((each.status for each in findings), key=_WORSE.index, default="ok")


def examine(checks: Sequence[Check], *, deadline_s: float = DEADLINE_S) -> tuple[Finding, ...]:
    """Run all checks at once; return what they found, in their order. One that is not done in time
    is left behind: its thread ends with the process."""
    started = [(check, _started(check)) for check in checks]
    until_s = time.monotonic() + deadline_s
    found: list[Finding] = []
    for check, answers in started:
        try:
            found += answers.get(timeout=max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            found.append(failure(check.name, f"no answer in {deadline_s:g} s", check.remedy))
    return tuple(found)


def _started(check: Check) -> "queue.SimpleQueue[list[Finding]]":
    answers: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()

    def work() -> None:
        found = looked(check)
        connections.close_all()
        answers.put(found)

    threading.Thread(target=work, name=f"doctor-{check.name}", daemon=True).start()
    return answers


def looked(check: Check) -> list[Finding]:
    """Return what a check found, also where it fell over: then after what it said until then."""
    found: list[Finding] = []
    try:
        found.extend(check.look())
    except (DatabaseError, InterfaceError) as error:
        judge = warning if check.needs_database else failure  # what is wrong is said once
        found.append(judge(check.name, f"the database says: {_words(error)}", check.remedy))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the operator must know
        found.append(failure(check.name, f"{type(error).__name__}: {_words(error)}", check.remedy))
    return found


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
