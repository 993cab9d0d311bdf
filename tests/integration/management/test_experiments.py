"""Experiments by the management API: made, started, watched and ended, with the page's numbers."""

import csv
import io
from typing import Any

import httpx
import pytest

from apps.core.hop import database_hop
from apps.experiments.counting import rows_count
from apps.experiments.models import Experiment
from apps.experiments.summary import experiment_results
from apps.routing.models import Route
from tests.integration.experiments.made import experiment
from tests.integration.experiments.plenty import plenty
from tests.integration.experiments.setting import ready, route_ready
from tests.integration.management.conftest import error_of, events
from tests.rows import all_of

DRAFT: dict[str, Any] = {
    "name": "cooler",
    "route": "chat",
    "hypothesis": "Cooler answers are shorter.",
    "variants": [
        {"name": "control", "is_control": True},
        {"name": "b", "parameters": {"temperature": 0.2}},
        {"name": "c", "deployment": "next", "weight": 25},
    ],
    "metrics": [
        {"metric": "completion_tokens", "role": "primary", "better": "lower"},
        {"metric": "error_rate", "role": "guardrail", "tolerance": 0.2},
        {"metric": "event:score"},
    ],
    "min_effect": 0.1,
    "planned_units": 4000,
}


@pytest.fixture
def route(transactional_db: None) -> Route:
    ready("next")
    return route_ready("chat")


async def test_from_a_draft_to_its_end(api: httpx.AsyncClient, route: Route) -> None:
    made = await api.post("/experiments", json=DRAFT)
    assert made.status_code == 201, made.text
    body = made.json()
    assert (body["id"], body["state"], body["version"]) == ("cooler", "draft", 1)
    assert [each["name"] for each in body["variants"]] == ["control", "b", "c"]
    assert body["variants"][2]["deployment"] == "next"
    assert body["metrics"][2] == {
        "metric": "event:score", "role": "secondary", "better": "higher", "tolerance": 0.1,
    }  # fmt: skip
    assert (body["layer"], body["subject"], body["alpha"]) == ("default", "end_user", 0.05)

    started = await api.post(
        "/experiments/cooler/start", headers={"If-Match": made.headers["ETag"]}
    )
    assert started.json()["state"] == "running"
    late = await api.post(
        "/experiments/cooler/weights",
        json={"weights": {"b": 80}},
        headers={"If-Match": made.headers["ETag"]},
    )
    assert late.status_code == 412
    weighed = await api.post("/experiments/cooler/weights", json={"weights": {"b": 80}})
    assert [each["weight"] for each in weighed.json()["variants"]] == [50, 80, 25]

    stopped = await api.post(
        "/experiments/cooler/stop", json={"because": "We know enough.", "winner": "b"}
    )
    assert stopped.status_code == 200, stopped.text
    assert (stopped.json()["state"], stopped.json()["winner"]) == ("stopped", "b")
    again = await api.post("/experiments/cooler/stop", json={"because": "x"})
    assert error_of(again)[:2] == (409, "experiment_conflict")
    listed = await api.get("/experiments")
    assert [each["id"] for each in listed.json()["data"]] == ["cooler"]
    assert (await api.get("/experiments/cooler")).json() == listed.json()["data"][0]
    acts = [action for action, kind in await database_hop(events) if kind == "token"]
    assert [each for each in acts if each.startswith("experiment.")] == [
        "experiment.created", "experiment.started", "experiment.weights_set", "experiment.stopped",
    ]  # fmt: skip


async def test_a_winner_is_rolled_out(api: httpx.AsyncClient, route: Route) -> None:
    await api.post("/experiments", json=DRAFT)
    await api.post("/experiments/cooler/start")
    done = await api.post("/experiments/cooler/promote", json={"variant": "c"})
    assert done.status_code == 200, done.text
    assert done.json()["experiment"]["winner"] == "c"
    assert done.json()["rollout"] is not None


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"route": "nowhere"}, "route"),
        ({"layer": "nowhere"}, "layer"),
        ({"metrics": [{"metric": "speed"}]}, "metrics[0].metric"),
        ({"variants": [{"name": "b", "deployment": "nowhere"}]}, "variants[0].deployment"),
        ({"variants": [{"name": "b", "other_route": "nowhere"}]}, "variants[0].other_route"),
        ({"variants": [{"name": "b", "weight": 0}]}, "variants[0].weight"),
        ({"eligibility": {"doors": ["window"]}}, "eligibility"),
        ({"alpha": 0.5}, "alpha"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_made(
    api: httpx.AsyncClient, route: Route, changes: dict[str, Any], param: str
) -> None:
    refused = await api.post("/experiments", json={**DRAFT, **changes})
    assert error_of(refused)[::2] == (400, param), refused.text
    assert await database_hop(all_of(Experiment).count) == 0


async def test_a_draft_that_cannot_start_says_why(api: httpx.AsyncClient, route: Route) -> None:
    await api.post("/experiments", json={**DRAFT, "metrics": []})
    refused = await api.post("/experiments/cooler/start")
    assert error_of(refused)[::2] == (400, "metrics")
    assert (await api.get("/experiments/cooler")).json()["state"] == "draft"


async def test_results_are_the_pages(api: httpx.AsyncClient, transactional_db: None) -> None:
    def counted() -> Any:
        made = experiment(("control", 50), ("b", 50), name="seen")
        plenty(made, n_people=200, n_tenants=2, failing={"b": 0.1}, slower={"b": 1.5})
        rows_count()
        return made.pk, experiment_results(Experiment.objects.get(pk=made.pk))

    _, expected = await database_hop(counted)
    answer = await api.get("/experiments/seen/results")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["id"], found["n_subjects"], found["n_requests"]) == ("seen", 200, 400)
    assert found["verdict"]["headline"] == expected.verdict.headline
    assert [each["n_subjects"] for each in found["arms"]] == [
        each.n_subjects for each in expected.arms
    ]
    for shown, line in zip(found["metrics"], expected.metrics, strict=True):
        assert shown["totals"] == {name: list(each) for name, each in line.totals.items()}
        assert shown["values"] == line.values
        for one, effect in zip(shown["effects"], line.effects, strict=True):
            assert (one["p_value"], one["said"]) == (effect.p_value, effect.said)
    # Nobody failed with the control: there is no bound, which JSON has no number for.
    errors = next(each for each in found["metrics"] if each["key"] == "error_rate")
    assert errors["values"]["control"] == 0
    assert errors["effects"][0]["high"] is None
    assert {each["segment"] for each in found["segments"]} == {
        "door:rest", "tenant:1", "tenant:2",
    }  # fmt: skip

    file = await api.get("/experiments/seen/results.csv")
    assert file.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(file.text)))
    latency = {
        row["variant"]: row for row in rows if (row["metric"], row["segment"]) == ("latency", "")
    }
    line = expected.primary
    assert float(latency["b"]["effect"]) == line.effects[0].effect
    assert [int(latency["b"][name]) for name in ("numerator", "denominator")] == list(
        line.totals["b"]
    )


@pytest.mark.parametrize("path", ["", "/results", "/results.csv"])
async def test_what_is_not_there(api: httpx.AsyncClient, path: str) -> None:
    assert error_of(await api.get(f"/experiments/nothing{path}"))[0] == 404
