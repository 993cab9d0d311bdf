from django.db import migrations, models


def copy_bounds(apps, schema_editor):
    """As many as ran until now are the fewest and the most."""
    apps.get_model('deployments', 'Deployment').objects.update(
        min_replicas=models.F('n_replicas'), max_replicas=models.F('n_replicas')
    )


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0004_place_replicas'),
    ]

    operations = [
        migrations.RunPython(copy_bounds, migrations.RunPython.noop),
    ]
