import django.core.validators
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
            name='Layer',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('updated_at', models.DateTimeField(auto_now=True)),
                ('name', models.SlugField(max_length=60, unique=True)),
                ('salt', models.CharField(editable=False, max_length=32)),
                ('version', models.PositiveIntegerField(default=1, editable=False)),
                ('holdout_percent', models.FloatField(default=0.0, help_text='Percent of subjects that are in none of its experiments, ever.', validators=[django.core.validators.MinValueValidator(0.0), django.core.validators.MaxValueValidator(50.0)], verbose_name='held out')),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='Experiment',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('updated_at', models.DateTimeField(auto_now=True)),
                ('name', models.SlugField(max_length=60, unique=True)),
                ('hypothesis', models.CharField(blank=True, max_length=500)),
                ('slots', models.JSONField(default=list, editable=False)),
                ('share_percent', models.FloatField(default=100.0, help_text='Percent of all subjects that take part.', validators=[django.core.validators.MinValueValidator(0.01), django.core.validators.MaxValueValidator(100.0)], verbose_name='share of subjects')),
                ('subject', models.CharField(choices=[('end_user', 'End user'), ('token', 'API token'), ('conversation', 'Conversation')], default='end_user', max_length=14, verbose_name='assigned by')),
                ('eligibility', models.JSONField(blank=True, default=dict)),
                ('salt', models.CharField(editable=False, max_length=32)),
                ('state', models.CharField(choices=[('draft', 'Draft'), ('running', 'Running'), ('stopped', 'Stopped')], default='draft', max_length=8)),
                ('alpha', models.FloatField(default=0.05, validators=[django.core.validators.MinValueValidator(0.001), django.core.validators.MaxValueValidator(0.2)], verbose_name='false alarms')),
                ('power', models.FloatField(default=0.8, validators=[django.core.validators.MinValueValidator(0.5), django.core.validators.MaxValueValidator(0.99)])),
                ('min_effect', models.FloatField(default=0.05, help_text='Relative: 0.05 is five percent.', validators=[django.core.validators.MinValueValidator(0.001), django.core.validators.MaxValueValidator(10.0)], verbose_name='least effect')),
                ('planned_units', models.PositiveIntegerField(default=2000, verbose_name='planned subjects')),
                ('pre_period_days', models.PositiveSmallIntegerField(default=0, help_text='Whose requests on this route make the comparison sharper (CUPED). 0: none.', validators=[django.core.validators.MaxValueValidator(30)], verbose_name='days before')),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('weights_set_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('stopped_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('stopped_because', models.CharField(blank=True, editable=False, max_length=500)),
                ('looked_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('version', models.PositiveIntegerField(default=1, editable=False)),
                ('route', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='experiments', to='routing.route')),
                ('started_by', models.ForeignKey(editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to=settings.AUTH_USER_MODEL)),
                ('layer', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='experiments', to='experiments.layer')),
            ],
            options={
                'ordering': ['-id'],
            },
        ),
        migrations.CreateModel(
            name='Variant',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.SlugField(max_length=40)),
                ('is_control', models.BooleanField(default=False, verbose_name='control')),
                ('weight', models.PositiveSmallIntegerField(default=50, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1000)])),
                ('parameters', models.JSONField(blank=True, default=dict)),
                ('prompt_template', models.TextField(blank=True, max_length=20000)),
                ('deployment', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='deployments.deployment')),
                ('experiment', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='variants', to='experiments.experiment')),
                ('other_route', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='routing.route')),
            ],
            options={
                'ordering': ['-is_control', 'id'],
                'default_permissions': (),
            },
        ),
        migrations.AddField(
            model_name='experiment',
            name='winner',
            field=models.ForeignKey(blank=True, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='experiments.variant'),
        ),
        migrations.CreateModel(
            name='Assignment',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('subject', models.CharField(max_length=16)),
                ('tenant_id', models.BigIntegerField()),
                ('door', models.CharField(blank=True, max_length=16)),
                ('first_seen_at', models.DateTimeField()),
                ('last_seen_at', models.DateTimeField()),
                ('n_requests', models.PositiveIntegerField(default=0)),
                ('is_crossed', models.BooleanField(default=False)),
                ('totals', models.JSONField(default=dict)),
                ('baseline', models.JSONField(default=dict)),
                ('experiment', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='assignments', to='experiments.experiment')),
                ('variant', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='assignments', to='experiments.variant')),
            ],
            options={
                'ordering': ['-id'],
            },
        ),
        migrations.CreateModel(
            name='VariantTotal',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('metric', models.CharField(max_length=80)),
                ('segment', models.CharField(blank=True, max_length=60)),
                ('moments', models.JSONField()),
                ('variant', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='totals', to='experiments.variant')),
            ],
            options={
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='ExperimentMetric',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('metric', models.CharField(max_length=80)),
                ('role', models.CharField(choices=[('primary', 'Primary'), ('secondary', 'Secondary'), ('guardrail', 'Guardrail')], default='secondary', max_length=10)),
                ('better', models.CharField(choices=[('higher', 'Higher'), ('lower', 'Lower')], max_length=6)),
                ('tolerance', models.FloatField(default=0.1, validators=[django.core.validators.MinValueValidator(0.0), django.core.validators.MaxValueValidator(10.0)])),
                ('experiment', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='metrics', to='experiments.experiment')),
            ],
            options={
                'ordering': ['id'],
                'default_permissions': (),
                'constraints': [models.UniqueConstraint(fields=('experiment', 'metric', 'role'), name='experiment_metric_uniq'), models.UniqueConstraint(condition=models.Q(('role', 'primary')), fields=('experiment',), name='experiment_primary_uniq')],
            },
        ),
        migrations.CreateModel(
            name='Look',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField()),
                ('results', models.JSONField()),
                ('experiment', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='looks', to='experiments.experiment')),
            ],
            options={
                'ordering': ['at'],
                'default_permissions': (),
                'indexes': [models.Index(fields=['experiment', 'at'], name='look_time_idx')],
            },
        ),
        migrations.AddConstraint(
            model_name='variant',
            constraint=models.UniqueConstraint(fields=('experiment', 'name'), name='variant_name_uniq'),
        ),
        migrations.AddConstraint(
            model_name='variant',
            constraint=models.UniqueConstraint(condition=models.Q(('is_control', True)), fields=('experiment',), name='variant_control_uniq'),
        ),
        migrations.AddConstraint(
            model_name='variant',
            constraint=models.CheckConstraint(condition=models.Q(('deployment', None), ('other_route', None), _connector='OR'), name='variant_one_way'),
        ),
        migrations.AddConstraint(
            model_name='experiment',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('started_at', None), ('state', 'draft'), ('stopped_at', None)), models.Q(('started_at__isnull', False), ('state', 'running'), ('stopped_at', None)), models.Q(('state', 'stopped'), ('stopped_at__isnull', False)), _connector='OR'), name='experiment_state_whole'),
        ),
        migrations.AddIndex(
            model_name='assignment',
            index=models.Index(fields=['experiment', '-id'], name='assignment_list_idx'),
        ),
        migrations.AddConstraint(
            model_name='assignment',
            constraint=models.UniqueConstraint(fields=('experiment', 'subject'), name='assignment_subject_uniq'),
        ),
        migrations.AddConstraint(
            model_name='varianttotal',
            constraint=models.UniqueConstraint(fields=('variant', 'metric', 'segment'), name='variant_total_uniq'),
        ),
    ]
