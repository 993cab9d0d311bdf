"""``manage.py experiment``: as the page says, and what it refuses."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from apps.audit.models import AuditEvent
from apps.experiments.models import Experiment, Variant, VariantTotal
from apps.experiments.selectors import metrics_of, variants_of
from apps.rollouts.models import Rollout
from apps.routing.models import Route
from apps.statistics.moments import Moments
from tests.factories import LayerFactory, TenantFactory, UserFactory
from tests.integration.experiments.setting import ready, route_ready
from tests.rows import all_of

pytestmark = pytest.mark.django_db
PAGE = Path(__file__).resolve().parents[3] / "docs" / "experiments.md"


@pytest.fixture(autouse=True)
def route(db: None) -> Route:
    ready("chat-next")
    return route_ready()


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("experiment", *arguments, stdout=out)
    return out.getvalue()


def create(*more: str, name: str = "cooler") -> str:
    words = ("--route", "chat", "--variant", "control=50", "--metric", "latency")
    return run("create", name, *words, *more)


def test_the_commands_of_the_page() -> None:
    [block] = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said = []
    for line in block.replace("\\\n", "").splitlines():
        words = shlex.split(line)
        assert words[:3] == [".venv/bin/python", "manage.py", "experiment"]
        said.append(run(*words[3:]))
    made, begun, weights, listed, results, promoted = said
    assert made == "cooler is a draft.\n"
    assert begun == "cooler runs on chat, for 50 % of its subjects.\n"
    assert weights == "control=50 cool=50 next=50\n"
    assert listed == "cooler  running on chat: control=50 cool=50 next=50\n"
    assert results.startswith("cooler, running: ")
    assert "cool: 0 subjects" in results
    rollout = Rollout.objects.get()
    assert promoted == f"next has won cooler: rollout {rollout.pk} moves chat to it.\n"
    experiment = Experiment.objects.get()
    assert (experiment.state, str(experiment.winner)) == ("stopped", "next")
    assert [str(each) for each in variants_of(experiment)] == [
        "control=50 control",
        "cool=50 max_tokens=256 temperature=0.2",
        "next=50 deployment=chat-next",
    ]
    assert [str(each) for each in metrics_of(experiment)] == [
        "primary latency, lower is better",
        "secondary completion_tokens, lower is better",
        "guardrail error_rate, lower is better, 0.1 worse at most",
    ]
    actors = set(all_of(AuditEvent).values_list("actor_kind", "actor_label"))
    assert actors == {("system", "manage.py experiment")}


def test_all_that_can_be_said_of_one(tmp_path: Path) -> None:
    LayerFactory(name="words")
    TenantFactory(slug="acme")
    Route.objects.create(name="org/chat:2")
    file = tmp_path / "template"
    file.write_text("Be short. {system}")
    create(
        "--control", "old", "--variant", "old=10", "--variant", "b=5:route=org/chat:2:top_p=0.5",
        "--variant", f"c=5:template={file}", "--secondary", "event:complaints=lower",
        "--layer", "words", "--subject", "token", "--tenant", "acme", "--door", "rest",
        "--end-user-prefix", "vip-", "--least-effect", "0.1",
    )  # fmt: skip
    made = Experiment.objects.get()
    specs = {each.name: each for each in variants_of(made)}
    assert specs["old"].is_control
    assert str(specs["b"]) == "b=5 route=org/chat:2 top_p=0.5"
    assert specs["c"].prompt_template == "Be short. {system}"
    assert metrics_of(made)[1].better == "lower"
    assert (made.layer.name, made.subject, made.min_effect) == ("words", "token", 0.1)
    assert made.eligibility == {
        "tenants": ["acme"],
        "doors": ["rest"],
        "end_user_prefixes": ["vip-"],
    }
    (described,) = json.loads(run("list", "--json"))
    assert (described["state"], described["variants"]["b"]) == ("draft", 5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--variant", "b"), "--variant: 'b' is not a name and a weight, such as b=50."),
        (("--variant", "b=5:deployment=no"), "--variant: There is no deployment 'no'."),
        (("--variant", "b=5:route=no"), "--variant: There is no route 'no'."),
        (("--variant", "b=5:top_p=x"), "--variant: top_p must be a number, not 'x'."),
        (("--variant", "b=5:seed=1"), "--variant: b: 'seed' is none of"),
        (("--variant", "b=5:template=/no/such"), "--variant: /no/such: "),
        (("--secondary", "no"), "--secondary: There is no metric 'no'."),
        (("--guardrail", "cost=x"), "--guardrail: 'cost=x' is not as"),
        (("--layer", "no"), "--layer: there is no layer 'no'."),
        (("--tenant", "no"), "--tenant, --door or --end-user-prefix: There is no tenant 'no'."),
        (("--share", "101"), "--share: "),
    ],
)
def test_what_is_refused_names_the_argument(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError) as refused:
        create(*words)
    assert str(refused.value).startswith(said)
    assert not Experiment.objects.exists()


def test_what_is_not_there() -> None:
    with pytest.raises(CommandError, match="--route: there is no route 'no'"):
        run("create", "x", "--route", "no", "--variant", "a=1")
    for verb in (("start",), ("results",), ("weights", "b=1"), ("promote", "b")):
        with pytest.raises(CommandError, match="NAME: there is no experiment 'no'"):
            run(verb[0], "no", *verb[1:])
    assert run("list") == "There is no experiment.\n"


def test_start_stop_and_what_they_refuse() -> None:
    create()
    with pytest.raises(CommandError, match="--variant: Give two at least"):
        run("start", "cooler")
    with pytest.raises(CommandError, match="does not run: it is draft"):
        run("stop", "cooler", "--because", "Enough.")
    create("--variant", "b=50", name="two")
    run("start", "two")
    with pytest.raises(CommandError, match="two has no variant 'c'"):
        run("stop", "two", "--because", "Enough.", "--winner", "c")
    with pytest.raises(CommandError, match="WEIGHT: There is no variant 'c'"):
        run("weights", "two", "c=5")
    with pytest.raises(CommandError, match="VARIANT: It sets nothing that the route could do"):
        run("promote", "two", "b")
    assert Experiment.objects.get(name="two").state == "running"
    assert run("stop", "two", "--because", "Enough.", "--winner", "b") == "two has stopped.\n"
    over = Experiment.objects.get(name="two")
    assert (over.stopped_because, str(over.winner)) == ("Enough.", "b")


def test_who_promotes_stands_behind_the_rollout() -> None:
    create("--variant", "b=50:deployment=chat-next")
    run("start", "cooler")
    with pytest.raises(CommandError, match="--as: there is nobody 'eve'"):
        run("promote", "cooler", "b", "--as", "eve")
    assert not Rollout.objects.exists()
    alice = UserFactory(username="alice")
    run("promote", "cooler", "b", "--as", "alice")
    assert Rollout.objects.get().started_by == alice


def test_results_for_programs_are_json_where_nothing_bounds_them() -> None:
    create("--guardrail", "error_rate=0.5", "--variant", "b=50")
    run("start", "cooler")
    for variant in Variant.objects.all():
        failed = 0 if variant.is_control else 3
        sums = sum((Moments.of(int(n < failed), 1) for n in range(20)), Moments())
        for metric in ("error_rate", "requests"):
            VariantTotal.objects.create(variant=variant, metric=metric, moments=sums.to_json())

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    results = json.loads(run("results", "cooler", "--json"), parse_constant=refuse)
    (line,) = (each for each in results["metrics"] if each["key"] == "error_rate")
    assert (line["effects"][0]["effect"], line["effects"][0]["n_subjects"]) == (None, 20)
