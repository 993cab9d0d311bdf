
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('registry', '0002_stages'),
    ]

    operations = [
        migrations.CreateModel(
            name='VerificationRun',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('updated_at', models.DateTimeField(auto_now=True)),
                ('status', models.CharField(choices=[('queued', 'Queued'), ('running', 'Running'), ('passed', 'Passed'), ('failed', 'Failed'), ('cancelled', 'Cancelled')], default='queued', max_length=9)),
                ('step', models.CharField(blank=True, choices=[('files', 'Reading the files'), ('loading', 'Loading the model'), ('answers', 'Asking it'), ('perplexity', 'Measuring perplexity'), ('latency', 'Measuring latency')], max_length=12)),
                ('percent', models.PositiveSmallIntegerField(default=0)),
                ('attempt', models.PositiveSmallIntegerField(default=0)),
                ('is_cancel_asked', models.BooleanField(default=False)),
                ('asked_by_kind', models.CharField(max_length=8)),
                ('asked_by_id', models.BigIntegerField(blank=True, null=True)),
                ('asked_by_label', models.CharField(max_length=200, verbose_name='asked by')),
                ('lease_owner', models.CharField(blank=True, max_length=120)),
                ('lease_until', models.DateTimeField(blank=True, null=True)),
                ('checks', models.JSONField(blank=True, default=list)),
                ('figures', models.JSONField(blank=True, default=dict)),
                ('error', models.TextField(blank=True)),
                ('log', models.TextField(blank=True, help_text="The end of the scratch engine's, if it failed.")),
                ('started_at', models.DateTimeField(blank=True, null=True)),
                ('ended_at', models.DateTimeField(blank=True, null=True)),
                ('version', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='verifications', to='registry.modelversion')),
            ],
            options={
                'verbose_name': 'verification',
                'ordering': ['-id'],
                'default_permissions': ('view', 'add', 'change'),
                'indexes': [models.Index(condition=models.Q(('status__in', ('queued', 'running'))), fields=['id'], name='verification_open_idx')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('status__in', ('queued', 'running'))), fields=('version',), name='verification_one_open')],
            },
        ),
    ]
