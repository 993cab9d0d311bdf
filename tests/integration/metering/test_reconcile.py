"""The ledger against itself: what was damaged is found by the request's id, and closed where that
is safe; what is right is left alone."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.limits import Limits
from apps.core.prices import Prices
from apps.metering.meter_sums import meter_correct
from apps.metering.models import Meter, UsageRecord, UsageRollup
from apps.metering.selectors import ledger_findings, reconciled_since, scopes_of
from apps.metering.services import ledger_correct, reserve, settle, usage_roll_up
from apps.metering.types import Finding, FindingKind, Outcome
from tests.integration.metering.test_services import PRINCIPAL, RESERVATION, settlement
from tests.rows import all_of

pytestmark = pytest.mark.django_db

WHO = replace(
    PRINCIPAL,
    limits=Limits(tokens_per_day=10_000, max_concurrent_requests=500),
    prices=Prices(prompt=7, cached=2, completion=11),
)


def request(request_id: str, *, is_settled: bool = True, **ending: Any) -> None:
    reservation = replace(RESERVATION, request_id=request_id, principal=WHO, scopes=scopes_of(WHO))
    grant = reserve(reservation)
    if is_settled:
        end = settlement(grant, request_id=request_id, **ending)
        settle(replace(end, prices=WHO.prices))


@pytest.fixture(autouse=True)
def traffic() -> None:
    """Of every kind, all of it right."""
    request("r-done")
    request("r-long", n_completion_tokens=20)
    request("r-failed", outcome=Outcome.FAILED, n_completion_tokens=0, n_cached_tokens=0)
    request("r-open", is_settled=False)
    usage_roll_up()


def found(**window: Any) -> list[Finding]:
    now = timezone.now()
    return ledger_findings(since=reconciled_since(now), now=now, **window)


def kinds() -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.kind.value, finding.request_ids) for finding in found()]


def reconcile(*arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("reconcile", *arguments, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def stored() -> list[Any]:
    return [
        list(all_of(model).order_by("id").values()) for model in (UsageRecord, Meter, UsageRollup)
    ]


def damage(request_id: str, **fields: Any) -> None:
    assert all_of(UsageRecord).filter(request_id=request_id).update(**fields) == 1


def test_what_is_right_is_not_found() -> None:
    before = stored()
    assert found() == []
    code, said = reconcile("--fix")
    assert (code, said[:28]) == (0, "The ledger agrees with itsel")
    assert stored() == before
    assert not all_of(AuditEvent).exists()


def test_a_row_past_its_life_is_found_and_closed() -> None:
    damage("r-open", expires_at=timezone.now() - timedelta(minutes=2))
    assert kinds() == [("unsettled", ("r-open",))]
    assert reconcile("--fix")[0] == 0
    row = all_of(UsageRecord).get(request_id="r-open")
    assert (row.outcome, row.n_charged_tokens, row.cost_micro) == ("interrupted", 10, 70)
    assert set(all_of(Meter).values_list("n_held", flat=True)) == {0}
    usage_roll_up()
    assert found() == []


def test_a_row_just_past_its_life_is_the_sweeps() -> None:
    damage("r-open", expires_at=timezone.now() - timedelta(seconds=5))
    assert found() == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"cost_micro": 1},
            "Charged 22 tokens and 1 micros; its tokens and prices make 22 and 162",
        ),
        ({"prompt_micro": 8}, "make 22 and 164"),
    ],
)
def test_a_wrong_cost_is_found_and_left(fields: dict[str, int], said: str) -> None:
    damage("r-done", **fields)
    all_of(UsageRecord).update(is_rolled_up=False)
    all_of(UsageRollup).all().delete()
    usage_roll_up()
    assert kinds() == [("miscounted", ("r-done",))]
    before = stored()
    code, text = reconcile("--fix")
    assert code == 1
    assert said in text and "r-done" in text
    assert stored() == before
    assert not all_of(AuditEvent).exists()


def test_a_wrong_charge_is_found_in_its_row_and_in_its_meters() -> None:
    damage("r-long", n_charged_tokens=29)
    assert sorted(kinds()) == [
        # The meters are off by one, which is no request's number: the newest are named.
        ("meter", ("r-open", "r-failed", "r-long")),
        ("meter", ("r-open", "r-failed", "r-long")),
        ("miscounted", ("r-long",)),
    ]


def test_tokens_that_no_request_holds_are_found_and_freed() -> None:
    all_of(Meter).filter(period__startswith="20").update(n_held=60)
    all_of(Meter).filter(period="open").update(n_held=2)
    findings = found()
    assert [finding.kind.value for finding in findings] == ["meter"] * 3
    day = next(each for each in findings if len(each.said.split()[1]) == len("2026-01-01:"))
    assert "holds 60, and open requests 30." in day.said
    assert day.request_ids[0] == "r-open"  # 30 of them too many, as it reserved
    assert reconcile("--fix")[0] == 0
    assert sorted(all_of(Meter).values_list("n_used", "n_held")) == [(0, 1), (52, 30), (52, 30)]
    assert list(all_of(AuditEvent).values_list("action", flat=True)) == ["ledger.corrected"] * 3
    assert all_of(AuditEvent).all()[0].changes["kind"] == "meter"


def test_a_meter_names_the_request_that_it_missed() -> None:
    all_of(Meter).filter(period__startswith="20").update(n_used=22)
    assert [request_ids[0] for _, request_ids in kinds()] == ["r-long"] * 2  # 30 tokens
    assert reconcile("--fix")[0] == 0
    assert sorted(all_of(Meter).values_list("n_used", "n_held")) == [(0, 1), (52, 30), (52, 30)]


def test_what_is_right_or_gone_by_now_is_no_correction(actor: Actor) -> None:
    all_of(Meter).filter(period__startswith="20").update(n_used=22)
    day, month = found()
    all_of(Meter).filter(pk=day.subject).update(n_used=52)
    all_of(Meter).filter(pk=month.subject).delete()
    before = stored()
    assert ledger_correct([day, month], now=timezone.now(), actor=actor) == 0
    assert stored() == before
    assert not all_of(AuditEvent).exists()


def test_a_meter_of_which_the_ledger_may_not_have_all_is_left() -> None:
    all_of(Meter).filter(period__startswith="20").update(n_used=22)
    now = timezone.now()
    assert ledger_findings(since=now + timedelta(days=1), now=now) == []


@pytest.mark.parametrize("damaged", [{"n_requests": 9}, {"cost_micro": 0}, {"n_failed": 0}])
def test_a_wrong_roll_up_is_found_and_made_again(damaged: dict[str, int]) -> None:
    right = stored()
    all_of(UsageRollup).filter(granularity="hour").update(**damaged)
    assert kinds() == [("rollup", ("r-failed", "r-long", "r-done"))]
    assert reconcile("--fix")[0] == 0
    assert stored() == right


def test_a_roll_up_that_is_gone_or_of_nothing_is_found() -> None:
    day = all_of(UsageRollup).get(granularity="day")
    day.delete()
    hour = all_of(UsageRollup).get(granularity="hour")
    hour.pk, hour.route_name = None, "other"
    hour.save()
    assert sorted(kinds()) == [("rollup", ()), ("rollup", ("r-failed", "r-long", "r-done"))]
    assert reconcile("--fix")[0] == 0
    assert set(all_of(UsageRollup).values_list("route_name", "n_requests")) == {("m", 3)}


def test_a_row_that_waits_too_long_is_found_and_rolled_up() -> None:
    request("r-late")
    assert found() == []
    damage("r-late", settled_at=timezone.now() - timedelta(hours=1))
    assert kinds() == [("not_rolled_up", ("r-late",))]
    assert reconcile("--fix")[0] == 0
    assert all_of(UsageRollup).get(granularity="day").n_requests == 4


def test_the_command_says_it_in_json() -> None:
    code, said = reconcile("--json")
    assert (code, json.loads(said)["findings"]) == (0, [])
    damage("r-open", expires_at=timezone.now() - timedelta(minutes=2))
    code, said = reconcile("--json", "--since", "2026-01-01")
    report = json.loads(said)
    assert (code, report["since"], report["n_corrected"]) == (1, "2026-01-01T00:00:00+00:00", 0)
    (finding,) = report["findings"]
    assert (finding["kind"], finding["request_ids"]) == ("unsettled", ["r-open"])
    code, said = reconcile("--json", "--fix")
    assert (code, json.loads(said)["n_corrected"]) == (0, 1)


def test_the_commands_of_the_page_do_what_it_says() -> None:
    page = Path(settings.BASE_DIR, "docs/ledger.md").read_text()
    commands = re.findall(r"^\.venv/bin/python manage\.py reconcile *(.*)$", page, re.M)
    assert commands == ["", "--since 2026-01-31 --json", "--fix"]
    damage("r-open", expires_at=timezone.now() - timedelta(minutes=2))
    assert [reconcile(*command.split())[0] for command in commands] == [1, 1, 0]
    kinds_said = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert kinds_said == [kind.value for kind in FindingKind]


def test_a_day_that_is_none_is_refused() -> None:
    with pytest.raises(CommandError, match="is not a day such as 2026-01-31"):
        call_command("reconcile", "--since", "yesterday")


@pytest.mark.django_db(transaction=True)
def test_while_requests_come_and_go_nothing_is_found_and_corrections_hold() -> None:
    meter_ids = list(all_of(Meter).values_list("pk", flat=True))

    def serve(number: int) -> list[Finding]:
        try:
            for index in range(8):
                request(f"r-{number}-{index}", is_settled=bool(index % 4))
            return []
        finally:
            connection.close()

    def look(_: int) -> list[Finding]:
        try:
            seen = found()
            usage_roll_up(rows_at_a_time=5)
            return seen
        finally:
            connection.close()

    def correct(_: int) -> list[Finding]:
        try:
            all_of(Meter).filter(pk__in=meter_ids, period="open").update(n_held=99)
            for meter_id in meter_ids:
                meter_correct(meter_id)
            return []
        finally:
            connection.close()

    with ThreadPoolExecutor(5) as pool:
        jobs = [*[(serve, n) for n in range(3)], *[(look, n) for n in range(6)]]
        assert [seen for seen in pool.map(lambda job: job[0](job[1]), jobs) if seen] == []
        list(pool.map(lambda job: job[0](job[1]), [(serve, 3), (correct, 0), (serve, 4)]))
    usage_roll_up()
    assert found() == []
    assert all_of(Meter).get(period="open").n_held == 1 + 5 * 2
