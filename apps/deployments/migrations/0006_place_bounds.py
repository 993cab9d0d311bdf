from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0005_place_bounds_copied'),
    ]

    operations = [
        migrations.AddConstraint(
            model_name='deployment',
            constraint=models.CheckConstraint(condition=models.Q(('max_replicas__lte', 16), ('min_replicas__gte', 1), ('n_replicas__gte', models.F('min_replicas')), ('n_replicas__lte', models.F('max_replicas'))), name='deployment_replicas_1_to_16'),
        ),
    ]
