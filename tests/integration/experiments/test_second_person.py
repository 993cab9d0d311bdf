"""Where a tenant wants two persons for a new version, one writes the draft, another starts it."""

from collections.abc import Callable

import pytest

from apps.audit.models import AuditEvent
from apps.audit.types import Actor
from apps.core.selectors import change_stamps
from apps.experiments.models import Experiment
from apps.experiments.services import experiment_start, experiment_update, variant_weights_set
from apps.experiments.types import VariantSpec
from apps.rbac.models import ApiToken, User
from apps.rollouts.exceptions import SecondPersonNeeded
from apps.routing.models import Route
from tests.factories import ApiTokenFactory, RouteTargetFactory, TenantFactory, UserFactory
from tests.integration.experiments.setting import drafted, ready, route_ready, stored
from tests.rows import all_of

pytestmark = pytest.mark.django_db


def as_user(user: User) -> Actor:
    return Actor(kind="user", id=user.pk, label=user.get_username())


def as_token(token: ApiToken) -> Actor:
    return Actor(kind="token", id=token.pk, label=str(token))


@pytest.fixture
def alice(db: None) -> User:
    return UserFactory(username="alice")


@pytest.fixture
def bob(db: None) -> User:
    return UserFactory(username="bob")


@pytest.fixture
def route(db: None) -> Route:
    TenantFactory(needs_second_person=True)
    return route_ready("newer")


def with_newcomer(route: Route, alice: User) -> Experiment:
    arms = (
        VariantSpec(name="control", is_control=True),
        VariantSpec(name="newer", deployment=ready("newer")),
    )
    return drafted(as_user(alice), route, variants=arms, share_percent=10.0)


def unchanged(experiment: Experiment, act: Callable[[], object], *, match: str) -> None:
    before, n_events, stamps = stored(experiment), all_of(AuditEvent).count(), change_stamps()
    with pytest.raises(SecondPersonNeeded, match=match):
        act()
    assert stored(experiment) == before
    assert (all_of(AuditEvent).count(), change_stamps()) == (n_events, stamps)


def start(experiment: Experiment, actor: Actor) -> Experiment:
    current = Experiment.objects.get(pk=experiment.pk)
    return experiment_start(experiment=current, seen=current.version, actor=actor)


def test_who_wrote_it_does_not_start_it(route: Route, alice: User, bob: User) -> None:
    experiment = with_newcomer(route, alice)
    unchanged(experiment, lambda: start(experiment, as_user(alice)), match="You wrote it")
    assert start(experiment, as_user(bob)).state == "running"


def test_who_changed_it_last_has_written_it(route: Route, alice: User, bob: User) -> None:
    experiment = with_newcomer(route, alice)
    experiment_update(
        experiment=experiment, seen=experiment.version, actor=as_user(bob), share_percent=20.0
    )
    unchanged(experiment, lambda: start(experiment, as_user(bob)), match="You wrote it")
    current = Experiment.objects.get(pk=experiment.pk)
    variant_weights_set(
        experiment=current, seen=current.version, actor=as_user(alice), weights={"newer": 70}
    )
    unchanged(experiment, lambda: start(experiment, as_user(alice)), match="You wrote it")
    assert start(experiment, as_user(bob)).state == "running"


@pytest.mark.parametrize(
    "which", ["own token", "made by the other", "service account", "tenant's own", "system"]
)
def test_a_token_is_somebody_or_nobody(route: Route, alice: User, bob: User, which: str) -> None:
    experiment = with_newcomer(route, alice)
    service = UserFactory(is_service=True)
    actors = {
        "own token": as_token(ApiTokenFactory(owner=bob, created_by=bob)),
        "made by the other": as_token(ApiTokenFactory(owner=bob, created_by=alice)),
        "service account": as_token(ApiTokenFactory(owner=service, created_by=alice)),
        "tenant's own": as_token(ApiTokenFactory(owner=None, created_by=alice)),
        "system": Actor(kind="system", label="manage.py experiment"),
    }
    if which == "own token":
        assert start(experiment, actors[which]).state == "running"
        return
    unchanged(experiment, lambda: start(experiment, actors[which]), match="known who starts")


def test_a_draft_of_nobody_is_started_by_nobody(route: Route, alice: User, bob: User) -> None:
    experiment = with_newcomer(route, alice)
    Experiment.objects.update(drafted_by=None)
    unchanged(experiment, lambda: start(experiment, as_user(bob)), match="Write it anew")


def test_its_part_stays_while_it_runs(route: Route, alice: User, bob: User) -> None:
    running = start(with_newcomer(route, alice), as_user(bob))
    seen = running.version
    unchanged(
        running,
        lambda: variant_weights_set(
            experiment=running, seen=seen, actor=as_user(alice), weights={"newer": 90}
        ),
        match="two persons agreed",
    )
    unchanged(
        running,
        lambda: experiment_update(
            experiment=running, seen=seen, actor=as_user(alice), share_percent=50.0
        ),
        match="two persons agreed",
    )
    experiment_update(experiment=running, seen=seen, actor=as_user(alice), hypothesis="Still.")


@pytest.mark.parametrize("why", ["nobody wants two", "it has a share already", "no version"])
def test_one_is_enough_otherwise(alice: User, why: str) -> None:
    if why != "nobody wants two":
        TenantFactory(needs_second_person=True)
    route = route_ready("newer")
    newer = ready("newer")
    if why == "it has a share already":
        RouteTargetFactory(route=route, deployment=newer, weight=5)
    arm = {"parameters": {"temperature": 0.2}} if why == "no version" else {"deployment": newer}
    arms = (
        VariantSpec(name="control", is_control=True),
        VariantSpec(name="newer", **arm),  # type: ignore[arg-type]
    )
    experiment = drafted(as_user(alice), route, variants=arms)
    assert start(experiment, as_user(alice)).state == "running"
