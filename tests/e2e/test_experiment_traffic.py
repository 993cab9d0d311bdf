"""Real traffic: two versions of the real model under an experiment, asked over HTTP. How requests
were split, which version answered each, and every metric are what an independent recount of the raw
ledger says. The recount shares no code with the product: hashes, sums and all are written here and
in ``recount.py``."""

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.db import connection

from apps.audit.types import SYSTEM
from apps.experiments.models import Assignment, Experiment
from apps.experiments.services import experiment_create, experiment_start, experiment_stop
from apps.experiments.summary import experiment_results
from apps.experiments.tasks import count
from apps.experiments.types import MetricSpec, VariantSpec
from apps.feedback.models import MetricEvent
from apps.metering.models import UsageRecord
from tests.factories import ApiTokenFactory, ModelVersionFactory, RouteFactory
from tests.integration.experiments.made import totals
from tests.integration.experiments.recount import recount
from tests.integration.gateway.failing_over import deployed, said
from tests.models import random_llama_dir, smollm2_dir
from tests.processes import EngineRun, ServerRun, running_engine, running_server
from tests.rows import all_of
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

NAME = "smollm2"
WEIGHTS = {"control": 70, "b": 30}
N_BEFORE = 30
CONTEXT = 1024  # of the tiny model
AT_A_TIME = 8
METRICS = (
    MetricSpec(metric="latency", role="primary"),
    MetricSpec(metric="error_rate", role="guardrail", tolerance=5.0),
    *(
        MetricSpec(metric=key)
        for key in (
            "requests", "ttft", "itl", "completion_tokens", "cost", "empty_rate",
            "thumbs_up_rate", "event:score", "sum:score",
        )
    ),
)  # fmt: skip


@pytest.fixture
def versions(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, EngineRun]]:
    """One model in two precisions: two versions. ``request.param``: the real model, or a tiny one
    for the short form."""
    directory = smollm2_dir() if request.param == "smollm2" else tiny(tmp_path_factory)
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    with (
        running_engine(directory, first, "--dtype", "bfloat16") as control,
        running_engine(directory, second, "--dtype", "float32") as b,
    ):
        yield {"control": control, "b": b}


def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama_dir(tmp_path_factory.mktemp("tiny"), max_position_embeddings=CONTEXT)


@pytest.fixture
def server(tmp_path: Path, transactional_db: None) -> Iterator[ServerRun]:
    with running_server(tmp_path) as run:
        yield run


class Traffic:
    """People of three tenants who ask, over real connections."""

    def __init__(self, server: ServerRun, n_people: int) -> None:
        self.tokens = [ApiTokenFactory() for _ in range(3)]
        self.people = [f"person-{number}" for number in range(n_people)]
        self.base_url = server.base_url
        self.answers: list[tuple[str, str, str]] = []  # request id, person, fingerprint
        self._local = threading.local()

    def ask(self, number: int) -> None:
        rng = random.Random(number)
        person = self.people[rng.randrange(len(self.people))]
        token = self.token_of(person)
        body = {
            "model": NAME, "user": person, "max_tokens": rng.choice((1, 4, 6, 8)),
            "messages": [{"role": "user", "content": f"Say {number}."}],
        }  # fmt: skip
        answer = self.post("/v1/chat/completions", body, token)
        self.answers.append((answer["id"], person, answer["system_fingerprint"]))
        if rng.random() < 0.3:
            rating = "up" if rng.random() < 0.7 else "down"
            self.post("/v1/feedback", {"request_id": answer["id"], "rating": rating}, token)
            if rng.random() < 0.2:  # and changes their mind
                self.post("/v1/feedback", {"request_id": answer["id"], "rating": "down"}, token)
        if rng.random() < 0.2:
            score = {"name": "score", "value": rng.uniform(-1, 5)}
            self.post("/v1/events", {**score, "request_id": answer["id"]}, token)

    def leave(self, number: int) -> None:
        """Begin to read an answer, and go."""
        person = self.people[number % len(self.people)]
        body = {
            "model": NAME, "user": person, "max_tokens": 400, "stream": True,
            "messages": [{"role": "user", "content": "Tell me a very long story."}],
        }  # fmt: skip
        path, headers = f"{self.base_url}/v1/chat/completions", self.headers(self.token_of(person))
        with httpx.stream("POST", path, json=body, headers=headers, timeout=120) as answer:
            next(answer.iter_lines())

    def tell(self, number: int) -> None:
        """A number about a person, of no request."""
        person = self.people[number % len(self.people)]
        self.post(
            "/v1/events", {"name": "score", "value": 2.5, "user": person}, self.token_of(person)
        )

    def token_of(self, person: str) -> Any:
        return self.tokens[int(person.rpartition("-")[2]) % len(self.tokens)]

    @staticmethod
    def headers(token: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {token.secret}"}

    def post(self, path: str, body: dict[str, Any], token: Any) -> Any:
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = httpx.Client(base_url=self.base_url, timeout=120)
        answer = client.post(path, json=body, headers=self.headers(token))
        assert answer.status_code in (200, 201), answer.text
        return answer.json()


def led(versions: dict[str, EngineRun]) -> tuple[Any, dict[str, Any]]:
    """Make the route, which leads to the control's version, and both deployments."""
    deployments = {}
    for name, dtype in (("control", "bfloat16"), ("b", "float32")):
        version = ModelVersionFactory(dtype=dtype)
        deployments[name] = deployed(f"smollm2-{name}", versions[name], model_version=version)
    route = RouteFactory(name=NAME, deployment=deployments["control"])
    said()
    return route, deployments


def begun(route: Any, deployments: dict[str, Any]) -> Experiment:
    draft = experiment_create(
        actor=SYSTEM, name="precision", route=route, pre_period_days=1, metrics=METRICS,
        variants=[
            VariantSpec(name="control", is_control=True, weight=WEIGHTS["control"]),
            VariantSpec(name="b", weight=WEIGHTS["b"], deployment=deployments["b"]),
        ],
    )  # fmt: skip
    return experiment_start(experiment=draft, seen=draft.version, actor=SYSTEM)


@pytest.mark.parametrize(
    ("versions", "n_requests"),
    [
        ("tiny", 200),
        pytest.param("smollm2", 2000, marks=(pytest.mark.prove, pytest.mark.timeout(3600))),
    ],
    indirect=["versions"],
)
def test_split_attribution_and_metrics_are_an_independent_recount(
    server: ServerRun, versions: dict[str, EngineRun], n_requests: int
) -> None:
    route, deployments = led(versions)
    traffic = Traffic(server, n_people=max(40, n_requests // 5))
    wait_until("the server to be ready", lambda: is_ready(server), timeout_s=60)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(traffic.ask, range(N_BEFORE)))
        made = begun(route, deployments)
        enrolled(traffic)
        n_before = len(traffic.answers)
        started = time.monotonic()
        with counted_meanwhile():
            list(pool.map(traffic.ask, range(1000, 1000 + n_requests)))
            spent_s = time.monotonic() - started
            list(pool.map(traffic.leave, range(3)))
    wait_until("everything to be settled", all_settled, timeout_s=60)
    count()
    for number in range(10):
        traffic.tell(number)
    made.refresh_from_db()
    experiment_stop(experiment=made, seen=made.version, actor=SYSTEM, because="It was enough.")
    count()
    made.refresh_from_db()
    print(f"{n_requests} requests in {spent_s:.0f} s: {n_requests / spent_s:.1f} a second")
    check_split(made, n_requests)
    check_attribution(made, deployments, traffic.answers[n_before:])
    assert totals(made) == recount(made)
    check_results(made)
    assert not all_of(UsageRecord).exclude(experiment_arm="").filter(is_in_experiments=False)
    assert not all_of(MetricEvent).exclude(experiment_arm="").filter(is_in_experiments=False)


def is_ready(server: ServerRun) -> bool:
    return httpx.get(f"{server.base_url}/readyz").status_code == 200


def enrolled(traffic: Traffic) -> None:
    """Wait until the server knows of the experiment; who asks meanwhile is no part of it."""

    def takes_part() -> bool:
        traffic.ask(10**6)
        row = all_of(UsageRecord).get(request_id=traffic.answers[-1][0])
        return bool(row.experiment_arm)

    wait_until("the server to know of the experiment", takes_part, timeout_s=30)


@contextmanager
def counted_meanwhile() -> Iterator[None]:
    """Count as beat does, while requests end."""
    stop = threading.Event()

    def whole() -> None:
        try:
            while not stop.wait(1.0):
                count()
        finally:
            connection.close()

    counting = threading.Thread(target=whole)
    counting.start()
    try:
        yield
    finally:
        stop.set()
        counting.join()


def all_settled() -> bool:
    return not all_of(UsageRecord).filter(state="reserved").exists()


def check_split(made: Experiment, n_requests: int) -> None:
    """Each subject in the arm that its hashes say, computed here anew, and as many as the weights
    say."""
    variants = {each.pk: each for each in made.variants.all()}
    rows = list(all_of(UsageRecord).exclude(experiment_arm=""))
    assert len(rows) >= n_requests
    arms = Counter()
    seen: dict[tuple[int, str], str] = {}
    for row in rows:
        name = f"end_user\0{row.tenant_id}\0{row.end_user}"
        subject = keyed(made.salt, name).hex()
        scores = {}
        for pk, variant in variants.items():
            drawn = int.from_bytes(keyed(made.salt, f"{subject}\0{pk}"), "big") >> 12
            scores[pk] = -variant.weight / log((drawn + 0.5) / 2**52)
        expected = max(scores, key=lambda pk: scores[pk])
        assert row.experiment_arm == f"e{made.pk}.v{expected}.{subject}"
        seen[row.tenant_id, row.end_user] = variants[expected].name
    arms = Counter(seen.values())
    assert all_of(Assignment).filter(experiment=made, is_crossed=False).count() == len(seen)
    n, share = len(seen), WEIGHTS["b"] / sum(WEIGHTS.values())
    print(f"{n} subjects: {dict(arms)}")
    # Beyond this lies one run of a million.
    assert abs(arms["b"] - n * share) <= 4.9 * sqrt(n * share * (1 - share))


def keyed(salt: str, text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8, key=salt.encode()).digest()


def check_attribution(
    made: Experiment, deployments: dict[str, Any], answers: list[tuple[str, str, str]]
) -> None:
    """The version that the answer says it is from, the ledger's row and the arm are one."""
    names = {each.pk: each.name for each in made.variants.all()}
    by_id = {row.request_id: row for row in all_of(UsageRecord).all()}
    for request_id, person, fingerprint in answers:
        row = by_id[request_id]
        arm = names[int(row.experiment_arm.split(".")[1][1:])]
        deployment = deployments[arm]
        assert (row.end_user, row.deployment_id) == (person, deployment.pk)
        assert row.model_version_id == deployment.model_version_id
        assert int(fingerprint.split("_")[1]) == deployment.model_version_id
        assert not row.is_fallback


def check_results(made: Experiment) -> None:
    """What people read are these sums: values, and numbers of subjects and requests."""
    found = experiment_results(made)
    expected = recount(made)
    for arm in found.arms:
        sums = expected[arm.name, "requests", ""]
        assert (arm.n_subjects, arm.n_requests, arm.n_crossed) == (sums[0], sums[1], 0)
    values = {}
    for line in found.metrics:
        scale = {"ms": 1000.0, "money": 1e6}.get(line.unit, 1.0)
        if line.key.startswith(("event:", "sum:")):
            scale = 1e6
        for name, value in line.values.items():
            _, y, x, *_ = expected.get((name, line.key, ""), [0] * 15)
            assert line.totals[name] == (y, x)
            plain = None if not x else exp(y / x / 1e6) if line.kind == "log_mean" else y / x
            assert value == (None if plain is None else pytest.approx(plain / scale, rel=1e-12))
            values[line.key, name] = value
    assert {key for key, _ in values} == {each.metric for each in METRICS}
    assert all(value is not None for value in values.values())
    print(found.verdict.headline)
    for (key, name), value in sorted(values.items()):
        print(f"  {key:18} {name:8} {value:12.4f}")
