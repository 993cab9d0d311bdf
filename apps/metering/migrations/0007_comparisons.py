from django.db import migrations, models


class Migration(migrations.Migration):
    """With defaults of the database's own: a process of the release before goes on writing rows."""

    dependencies = [
        ('metering', '0006_fallbacks'),
    ]

    operations = [
        migrations.AddField(
            model_name='usagerecord',
            name='is_in_experiments',
            field=models.BooleanField(db_default=False, default=False, help_text='Its experiments have counted it.'),
        ),
        migrations.AddField(
            model_name='usagerecord',
            name='is_in_rollout',
            field=models.BooleanField(db_default=False, default=False, help_text='Its rollout has counted it.'),
        ),
        migrations.AddField(
            model_name='usagerecord',
            name='rollout_arm',
            field=models.CharField(blank=True, db_default='', help_text="Step and side of its route's rollout.", max_length=60),
        ),
        migrations.AlterField(
            model_name='usagerecord',
            name='experiment_arm',
            field=models.CharField(blank=True, help_text='Of the experiments that it took part in.', max_length=250),
        ),
        migrations.AddIndex(
            model_name='usagerecord',
            index=models.Index(condition=models.Q(('is_in_experiments', False), ('state', 'settled'), ('experiment_arm__gt', '')), fields=['id'], name='usage_to_experiment_idx'),
        ),
        migrations.AddIndex(
            model_name='usagerecord',
            index=models.Index(condition=models.Q(('is_in_rollout', False), ('state', 'settled'), ('rollout_arm__gt', '')), fields=['id'], name='usage_to_rollout_idx'),
        ),
    ]
