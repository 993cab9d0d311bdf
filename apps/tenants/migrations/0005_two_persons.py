from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tenants', '0004_prices'),
    ]

    operations = [
        migrations.AddField(
            model_name='tenant',
            name='needs_second_person',
            field=models.BooleanField(db_default=False, default=False, help_text='Of routes that are for it: whoever starts a rollout cannot approve it.', verbose_name='two persons for rollouts'),
        ),
    ]
