"""The list of who took part at its size, 100,000 subjects, judged by what a look at it costs."""

import pytest
from django.test import Client
from django.urls import reverse

from apps.experiments.models import Assignment
from tests.factories.experiments import AssignmentFactory, ExperimentFactory, VariantFactory
from tests.integration.console.test_million_rows import MOST_CPU_MS, MOST_QUERIES, Meter, cost_of

pytestmark = [pytest.mark.django_db, pytest.mark.prove, pytest.mark.timeout(600)]

N_SUBJECTS = 100_000


def test_the_list_of_subjects_costs_little(admin_client: Client) -> None:
    url = reverse("admin:experiments_assignment_changelist")
    variant = VariantFactory(experiment=ExperimentFactory(running=True))
    made = AssignmentFactory.build(variant=variant, experiment=variant.experiment)
    facts = {
        field.attname: getattr(made, field.attname)
        for field in Assignment._meta.concrete_fields
        if field.name not in ("id", "subject")
    }
    rows = (Assignment(**facts, subject=f"{n:016x}") for n in range(N_SUBJECTS))
    Assignment.objects.bulk_create(rows, batch_size=500)
    meter = Meter()
    costs = {
        name: cost_of(admin_client, f"{url}{query}", meter)
        for name, query in {
            "all": "",
            "of one experiment": f"?experiment={variant.experiment_id}",
            "last page": f"?experiment={variant.experiment_id}&p=199",
            "one subject": f"?q={7:016x}",
            "no such subject": "?q=nothing",
        }.items()
    }
    costs["experiments"] = cost_of(
        admin_client, reverse("admin:experiments_experiment_changelist"), meter
    )
    for name, cost in costs.items():
        print(name, cost)
    for name, cost in costs.items():
        assert cost.cpu_ms <= MOST_CPU_MS, name
        assert cost.n_queries <= MOST_QUERIES, name
