"""Whether what clients saw, what the ledger says and what engines recorded are one."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.faults.soak_client import Attempt, End
from tests.faults.soak_faults import Fault
from tests.serve import RunningProduct

# Between a kill and the moment at which its client notes it, on a busy machine.
NOTICED_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the ledger; ``tag`` is its end user."""

    request_id: str
    tag: str
    state: str
    outcome: str
    n_prompt: int
    n_completion: int
    n_charged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What an engine recorded of a request."""

    n_prompt: int
    n_completion: int


def rows_of(product: RunningProduct, *, tenant_id: int) -> list[Row]:
    columns = (
        "request_id, end_user, state, outcome, n_prompt_tokens, n_completion_tokens, "
        "n_charged_tokens"
    )
    query = f"SELECT {columns} FROM metering_usagerecord WHERE tenant_id = {tenant_id}"
    return [
        Row(
            request_id=values[0],
            tag=values[1],
            state=values[2],
            outcome=values[3],
            n_prompt=values[4],
            n_completion=values[5],
            n_charged=values[6],
        )
        for values in product.rows(query)
    ]


def entries_of(product: RunningProduct) -> dict[str, Entry]:
    """Return what the engines' journals say, by request id."""
    found = product.rows(
        "SELECT request_id, sum(n_prompt_tokens), sum(n_completion_tokens) "
        "FROM engines_journalentry GROUP BY request_id"
    )
    return {
        request_id: Entry(n_prompt=n_prompt, n_completion=n_completion)
        for request_id, n_prompt, n_completion in found
    }


def problems(
    attempts: Sequence[Attempt],
    rows: Sequence[Row],
    entries: Mapping[str, Entry],
    faults: Sequence[Fault],
) -> list[str]:
    """Return everything that must not be, each with its request."""
    by_tag: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_tag[row.tag].append(row)
    known = {attempt.tag for attempt in attempts}
    found = [f"nobody asked for {row}" for row in rows if row.tag not in known]
    for row in rows:
        entry = entries.get(row.request_id)
        found += [f"{said}: {row} {entry}" for said in _journal(row, entry)]
    for attempt in attempts:
        own = by_tag[attempt.tag]
        said = [*_ending(attempt, faults), *_row(attempt, own), *_away(attempt, faults)]
        found += [f"{each}: {attempt} {own}" for each in said]
    return found


def _ending(attempt: Attempt, faults: Sequence[Fault]) -> Iterator[str]:
    """What a client may see, and when."""
    match attempt.end:
        case End.REFUSED:
            if attempt.status != 503:
                yield f"refused with {attempt.status}, not 503"
            if not {"message", "type", "code"} <= attempt.error.keys():
                yield "a refusal that does not say why"
            if attempt.retry_after is None:
                yield "a refusal that does not say when to come again"
        case End.ENDLESS | End.SILENT:
            yield "a request without an end"
        case End.CUT | End.UNREACHED:
            if not any(_meets(attempt, fault) for fault in faults if fault.kind == "web"):
                yield "cut off although no server was killed"
        case End.ERROR_EVENT:
            if attempt.finish_reason is not None:
                yield "an error after the answer was whole"
        case End.COMPLETED:
            if attempt.finish_reason != "length" or attempt.n_seen != attempt.n_completion:
                yield "an answer that is not whole"


def _row(attempt: Attempt, rows: Sequence[Row]) -> Iterator[str]:
    """One row for what has begun, none twice; what it charges is what was told, or delivered."""
    if len(rows) > 1:
        yield "doubled"
    if not rows:
        if attempt.has_begun:
            yield "lost"
        return
    (row, *_) = rows
    if row.state != "settled":
        yield "left open"
    if attempt.request_id and row.request_id != attempt.request_id:
        yield "another id"
    charge = row.n_prompt + row.n_completion
    if row.outcome == "failed" and row.n_completion == 0:
        charge = 0  # the platform's fault, and nothing was delivered
    if row.n_charged != charge:
        yield f"charged {row.n_charged} tokens, not {charge}"
    if row.outcome not in _OUTCOMES[attempt.end]:
        yield f"{row.outcome} in the ledger"
    if attempt.end == End.COMPLETED and (row.n_prompt, row.n_completion) != (
        attempt.n_prompt,
        attempt.n_completion,
    ):
        yield "other usage than the client was told"
    if attempt.n_seen > row.n_completion:
        yield "more delivered than charged"


_OUTCOMES: Mapping[End, frozenset[str]] = {
    End.COMPLETED: frozenset({"completed"}),
    End.ERROR_EVENT: frozenset({"failed"}),
    End.REFUSED: frozenset({"failed"}),
    End.UNREACHED: frozenset(),
    # The server was killed: its row is an orphan's, closed by the journal, unless it was settled.
    End.CUT: frozenset({"interrupted", "completed", "failed"}),
    End.SILENT: frozenset(),
    End.ENDLESS: frozenset(),
}


def _journal(row: Row, entry: Entry | None) -> Iterator[str]:
    """What an engine made is what is charged, but for what it made and could not send any more."""
    if entry is None:
        if row.outcome == "completed" or row.n_completion:
            yield "no engine recorded it"
        return
    if row.n_prompt != entry.n_prompt:
        yield "another prompt in the journal"
    if row.outcome == "failed":
        if row.n_completion > entry.n_completion:
            yield "charged for more than its engine made"
    elif row.n_completion != entry.n_completion:
        yield "other tokens in the journal"


def _away(attempt: Attempt, faults: Sequence[Fault]) -> Iterator[str]:
    """Nothing begins while what limits and records it is away."""
    for fault in faults:
        is_within = fault.began_s + 1 < attempt.began_s and attempt.ended_s < fault.over_s
        if fault.kind in ("database", "cache") and is_within and attempt.has_begun:
            yield f"served while the {fault.kind} was away"


def _meets(attempt: Attempt, fault: Fault) -> bool:
    return attempt.began_s < fault.over_s + NOTICED_S and attempt.ended_s > fault.began_s


def counts(
    attempts: Sequence[Attempt], rows: Sequence[Row], entries: Mapping[str, Entry]
) -> dict[str, dict[str, int]]:
    """Return the figures that are kept of a run."""
    refused = [attempt for attempt in attempts if attempt.end == End.REFUSED]
    streams = [attempt for attempt in attempts if attempt.is_stream]
    own = {row.request_id: entries.get(row.request_id) for row in rows}
    return {
        "attempts": Counter(attempt.end.value for attempt in attempts),
        "refusals": Counter(f"{each.status} {each.error.get('code')}" for each in refused),
        "streams": Counter(attempt.end.value for attempt in streams),
        "rows": Counter(row.outcome or row.state for row in rows),
        "tokens": {
            "told": sum(each.n_completion or 0 for each in attempts),
            "in the ledger": sum(row.n_completion for row in rows),
            "in the journals": sum(entry.n_completion for entry in own.values() if entry),
        },
    }
