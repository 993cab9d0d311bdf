from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('routing', '0006_route_without_deployment'),
    ]

    operations = [
        migrations.AddField(
            model_name='route',
            name='held_by',
            field=models.CharField(blank=True, db_default='', editable=False, help_text='What alone may change where it leads, such as a rollout.', max_length=60),
        ),
        migrations.AddField(
            model_name='routetarget',
            name='arm',
            field=models.CharField(blank=True, db_default='', editable=False, help_text='What the ledger says of its requests, for the rollout that holds the route.', max_length=60),
        ),
    ]
