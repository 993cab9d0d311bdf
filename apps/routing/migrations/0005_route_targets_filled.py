from typing import Any

from django.db import migrations


def to_targets(apps: Any, schema_editor: Any) -> None:
    route, target = apps.get_model("routing", "Route"), apps.get_model("routing", "RouteTarget")
    rows = route.objects.exclude(deployment=None).values_list("pk", "deployment_id")
    target.objects.bulk_create(
        target(route_id=pk, deployment_id=deployment_id, weight=100) for pk, deployment_id in rows
    )


def to_the_heaviest(apps: Any, schema_editor: Any) -> None:
    """A route leads to one deployment again: the one that had the largest share."""
    route, target = apps.get_model("routing", "Route"), apps.get_model("routing", "RouteTarget")
    for pk in route.objects.values_list("pk", flat=True):
        heaviest = target.objects.filter(route_id=pk).order_by("-weight", "pk").first()
        if heaviest is not None:
            route.objects.filter(pk=pk).update(deployment_id=heaviest.deployment_id)
    target.objects.all().delete()


class Migration(migrations.Migration):
    dependencies = [("routing", "0004_route_targets")]

    operations = [migrations.RunPython(to_targets, to_the_heaviest)]
