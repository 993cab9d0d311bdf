from django.db import migrations


class Migration(migrations.Migration):
    """A process of the release before goes on with the routes that it has read."""

    dependencies = [("routing", "0005_route_targets_filled")]

    operations = [migrations.RemoveField(model_name="route", name="deployment")]
