"""From the one deployment of a route to its targets, and back."""

import pytest

from tests.factories import DeploymentFactory
from tests.migrating import migrate, migrated_back

BEFORE = [("routing", "0003_route_caches_responses")]
AFTER = [("routing", "0006_route_without_deployment")]


@pytest.mark.django_db(transaction=True)
def test_routes_lead_where_they_did_there_and_back() -> None:
    light, heavy = DeploymentFactory(name="light"), DeploymentFactory(name="heavy")
    with migrated_back(BEFORE) as models:
        old = models.get_model("routing", "Route")
        old.objects.create(name="chat", deployment_id=light.pk)
        new = migrate(AFTER)
        target = new.get_model("routing", "RouteTarget")
        (row,) = target.objects.all()
        assert (row.route.name, row.deployment_id, row.weight) == ("chat", light.pk, 100)
        assert (row.fallback_order, row.route.defaults) == (None, {})
        target.objects.create(route=row.route, deployment_id=heavy.pk, weight=300)
        old = migrate(BEFORE).get_model("routing", "Route")
        assert old.objects.get().deployment_id == heavy.pk
