"""What a soak would notice: each of the things that must not be, made up."""

from dataclasses import replace

import pytest

from tests.faults.soak_checks import Entry, Row, problems
from tests.faults.soak_client import Attempt, End
from tests.faults.soak_faults import Fault

WHOLE = Attempt(
    tag="a", is_stream=True, began_s=10, ended_s=12, status=200, request_id="r", n_seen=3,
    end=End.COMPLETED, n_prompt=9, n_completion=3, finish_reason="length",
)  # fmt: skip
FAILED = replace(
    WHOLE, end=End.ERROR_EVENT, n_seen=2, n_prompt=None, n_completion=None, finish_reason=None
)
CUT = replace(FAILED, end=End.CUT)
REFUSED = Attempt(
    tag="a", is_stream=False, began_s=10, ended_s=12, status=503, end=End.REFUSED, retry_after="1",
    error={"message": "Gone.", "type": "server_error", "param": None, "code": "unavailable"},
)  # fmt: skip
ROW = Row(
    request_id="r", tag="a", state="settled", outcome="completed", n_prompt=9, n_completion=3,
    n_charged=12,
)  # fmt: skip
SHORT_ROW = replace(ROW, outcome="failed", n_completion=2, n_charged=11)
ENTRY = Entry(n_prompt=9, n_completion=3)
KILL = Fault(kind="web", began_s=11, over_s=11, back_s=3)
AWAY = Fault(kind="database", began_s=5, over_s=20, back_s=1)


@pytest.mark.parametrize(
    ("attempt", "rows", "entry", "faults"),
    [
        (WHOLE, [ROW], ENTRY, []),
        (WHOLE, [ROW], ENTRY, [KILL]),
        (FAILED, [SHORT_ROW], ENTRY, []),
        (FAILED, [SHORT_ROW], Entry(n_prompt=9, n_completion=2), []),
        (replace(FAILED, n_seen=0), [replace(ROW, outcome="failed", n_completion=0, n_charged=0)],
         None, []),
        (CUT, [replace(ROW, outcome="interrupted")], ENTRY, [KILL]),
        (CUT, [ROW], ENTRY, [KILL]),
        (REFUSED, [], None, [AWAY]),
        (REFUSED, [SHORT_ROW], ENTRY, []),
    ],
)  # fmt: skip
def test_what_may_be(
    attempt: Attempt, rows: list[Row], entry: Entry | None, faults: list[Fault]
) -> None:
    entries = {"r": entry} if entry else {}
    assert problems([attempt], rows, entries, faults) == []


@pytest.mark.parametrize(
    ("said", "attempt", "rows", "entry", "faults"),
    [
        ("lost", WHOLE, [], ENTRY, []),
        ("doubled", WHOLE, [ROW, replace(ROW, request_id="r2")], ENTRY, []),
        ("nobody asked for", WHOLE, [ROW, replace(ROW, tag="b")], ENTRY, []),
        ("left open", WHOLE, [replace(ROW, state="reserved")], ENTRY, []),
        ("another id", WHOLE, [replace(ROW, request_id="r2")], ENTRY, []),
        ("charged 11 tokens, not 12", WHOLE, [replace(ROW, n_charged=11)], ENTRY, []),
        ("other usage", WHOLE, [replace(ROW, n_prompt=8, n_charged=11)], ENTRY, []),
        ("failed in the ledger", WHOLE, [replace(ROW, outcome="failed")], ENTRY, []),
        ("more delivered than charged", FAILED,
         [replace(SHORT_ROW, n_completion=1, n_charged=10)], ENTRY, []),
        ("not whole", replace(WHOLE, n_seen=2), [ROW], ENTRY, []),
        ("an error after the answer was whole", replace(FAILED, finish_reason="length"),
         [SHORT_ROW], ENTRY, []),
        ("without an end", replace(WHOLE, end=End.ENDLESS), [ROW], ENTRY, []),
        ("without an end", replace(WHOLE, end=End.SILENT), [ROW], ENTRY, []),
        ("no server was killed", CUT, [replace(ROW, outcome="interrupted")], ENTRY, [AWAY]),
        ("no server was killed", CUT, [replace(ROW, outcome="interrupted")], ENTRY,
         [replace(KILL, began_s=30, over_s=30)]),
        ("refused with 401, not 503", replace(REFUSED, status=401), [], None, [AWAY]),
        ("refused with 500, not 503", replace(REFUSED, status=500), [], None, [AWAY]),
        ("does not say when", replace(REFUSED, retry_after=None), [], None, [AWAY]),
        ("does not say why", replace(REFUSED, error={}), [], None, [AWAY]),
        ("completed in the ledger", REFUSED, [ROW], ENTRY, []),
        ("served while the database was away", WHOLE, [ROW], ENTRY, [AWAY]),
        ("no engine recorded it", WHOLE, [ROW], None, []),
        ("another prompt in the journal", WHOLE, [ROW], Entry(n_prompt=8, n_completion=3), []),
        ("other tokens in the journal", WHOLE, [ROW], Entry(n_prompt=9, n_completion=4), []),
        ("charged for more than its engine made", FAILED, [SHORT_ROW],
         Entry(n_prompt=9, n_completion=1), []),
    ],
)  # fmt: skip
def test_what_must_not_be(
    said: str, attempt: Attempt, rows: list[Row], entry: Entry | None, faults: list[Fault]
) -> None:
    entries = {row.request_id: entry for row in rows} if entry else {}
    assert any(said in each for each in problems([attempt], rows, entries, faults))
