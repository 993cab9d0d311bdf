import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('deployments', '0009_weights_fp8'),
        ('routing', '0007_holds'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Rollout',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('updated_at', models.DateTimeField(auto_now=True)),
                ('route_name', models.CharField(max_length=120)),
                ('baseline_name', models.CharField(max_length=60)),
                ('candidate_name', models.CharField(max_length=60)),
                ('state', models.CharField(choices=[('pending', 'Waits for approval to start'), ('running', 'Running'), ('awaiting', 'Waits for approval'), ('paused', 'Paused'), ('completed', 'Completed'), ('rolled_back', 'Rolled back'), ('aborted', 'Aborted')], default='running', max_length=12)),
                ('steps', models.JSONField()),
                ('guardrails', models.JSONField()),
                ('approval', models.CharField(choices=[('automatic', 'By itself'), ('last', 'The last step waits for approval'), ('each', 'Each step waits for approval')], default='automatic', max_length=10, verbose_name='promotion')),
                ('needs_second_person', models.BooleanField(default=False, help_text='Whoever started it cannot approve it.')),
                ('alpha', models.FloatField(default=0.05, help_text='Of rollouts of an equal version, at most.', verbose_name='false alarms')),
                ('step', models.PositiveSmallIntegerField(default=0, help_text='The index of the present one.')),
                ('step_started_at', models.DateTimeField(blank=True, null=True)),
                ('paused_from', models.CharField(blank=True, help_text='To be resumed to.', max_length=12)),
                ('approved_step', models.SmallIntegerField(default=-1, help_text='Up to which step it was approved.')),
                ('targets_before', models.JSONField(default=list)),
                ('reason', models.CharField(blank=True, help_text='Why it is in its state, in words.', max_length=500)),
                ('started_by_name', models.CharField(blank=True, max_length=200)),
                ('ended_at', models.DateTimeField(blank=True, null=True)),
                ('judged_at', models.DateTimeField(blank=True, help_text='By its controller, last.', null=True)),
                ('lost_at', models.DateTimeField(blank=True, help_text='Since when the new version has no ready replica.', null=True)),
                ('version', models.PositiveIntegerField(default=1)),
                ('baseline', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='deployments.deployment')),
                ('candidate', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='deployments.deployment')),
                ('route', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='rollouts', to='routing.route')),
                ('started_by', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['-id'],
                'permissions': [('approve_rollout', 'Can approve a rollout')],
            },
        ),
        migrations.CreateModel(
            name='RolloutTally',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('step', models.PositiveSmallIntegerField()),
                ('side', models.CharField(choices=[('baseline', 'Old'), ('candidate', 'New')], max_length=10)),
                ('n_requests', models.PositiveBigIntegerField(default=0)),
                ('n_failed', models.PositiveBigIntegerField(default=0)),
                ('sums', models.JSONField(default=dict)),
                ('started_at', models.DateTimeField()),
                ('counted_at', models.DateTimeField(blank=True, null=True)),
                ('rollout', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='tallies', to='rollouts.rollout')),
            ],
            options={
                'ordering': ['rollout', 'step', 'side'],
                'default_permissions': (),
            },
        ),
        migrations.AddConstraint(
            model_name='rollout',
            constraint=models.UniqueConstraint(condition=models.Q(('state__in', ('pending', 'running', 'awaiting', 'paused'))), fields=('route',), name='rollout_open_uniq'),
        ),
        migrations.AddConstraint(
            model_name='rollout',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('ended_at', None), ('state__in', ('pending', 'running', 'awaiting', 'paused'))), models.Q(('ended_at__isnull', False), ('state__in', ('completed', 'rolled_back', 'aborted'))), _connector='OR'), name='rollout_ended_whole'),
        ),
        migrations.AddConstraint(
            model_name='rollouttally',
            constraint=models.UniqueConstraint(fields=('rollout', 'step', 'side'), name='rollout_tally_uniq'),
        ),
    ]
