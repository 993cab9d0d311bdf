"""What open pages of experiments are told: when something was counted, and when to be made anew."""

from collections.abc import Mapping
from typing import Any

import pytest
from django.utils import timezone

from apps.audit.types import Actor
from apps.console.topics import kinds_open_to, topics_in, topics_words
from apps.core.access import Access
from apps.experiments.counting import rows_count
from apps.experiments.models import Experiment
from apps.experiments.services import experiment_stop
from tests.factories.experiments import ExperimentFactory
from tests.integration.experiments.made import asked, experiment

pytestmark = pytest.mark.django_db


def texts_of(made: Experiment) -> Mapping[str, str]:
    return topics_words([("experiment", made.pk)], now=timezone.now())["experiment", made.pk].texts


def test_news_are_told_when_something_was_counted(actor: Actor) -> None:
    made, other = experiment(), experiment(name="other")
    x = f"x{made.pk}"
    first, others = texts_of(made), texts_of(other)
    assert first[f"{x}.state"] == "Running"
    assert texts_of(made) == first
    asked(made, "ann")
    rows_count()
    second = texts_of(made)
    assert second[f"{x}.news"] != first[f"{x}.news"]
    assert second[f"{x}.shape"] == first[f"{x}.shape"]
    assert texts_of(other) == others
    experiment_stop(experiment=made, seen=made.version, actor=actor, because="Enough.")
    third = texts_of(made)
    assert third[f"{x}.state"] == "Stopped"
    assert third[f"{x}.shape"] != first[f"{x}.shape"]


def test_all_pages_together_take_two_queries(django_assert_num_queries: Any) -> None:
    made = [ExperimentFactory() for _ in range(5)]
    asked_for = [("experiment", each.pk) for each in made] + [("experiment", 987654)]
    with django_assert_num_queries(2):
        words = topics_words(asked_for, now=timezone.now())
    assert set(words) == {("experiment", each.pk) for each in made}


def test_only_who_may_see_experiments_is_told() -> None:
    assert topics_in(b"experiment=5&route=x") == {("experiment", 5)}
    seen = Access(platform=frozenset({"experiments.view_experiment"}))
    assert kinds_open_to(seen) == {"experiment"}
    within = {1: frozenset({"experiments.view_experiment"})}
    assert "experiment" not in kinds_open_to(Access(tenants=within))
