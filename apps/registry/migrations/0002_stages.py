
import django.core.validators
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('registry', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='StageMove',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('before', models.CharField(choices=[('draft', 'Draft'), ('verified', 'Verified'), ('approved', 'Approved'), ('retired', 'Retired')], max_length=8)),
                ('after', models.CharField(choices=[('draft', 'Draft'), ('verified', 'Verified'), ('approved', 'Approved'), ('retired', 'Retired')], max_length=8)),
                ('reason', models.CharField(blank=True, max_length=500)),
                ('actor_label', models.CharField(max_length=200, verbose_name='by')),
                ('at', models.DateTimeField(auto_now_add=True)),
            ],
            options={
                'verbose_name': 'move',
                'ordering': ['-id'],
                'default_permissions': ('view',),
            },
        ),
        migrations.CreateModel(
            name='VersionTag',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(db_index=True, max_length=40, validators=[django.core.validators.RegexValidator('^[a-z0-9][a-z0-9._-]*$', 'Use lower-case letters, digits and . _ - only.')])),
            ],
            options={
                'ordering': ['name'],
                'default_permissions': (),
            },
        ),
        migrations.AlterModelOptions(
            name='modelversion',
            options={'ordering': ['model', '-version'], 'permissions': [('approve_modelversion', 'Can approve a version for production')]},
        ),
        migrations.AddField(
            model_name='modelversion',
            name='lineage',
            field=models.CharField(blank=True, choices=[('quantised', 'Quantised from'), ('fine_tuned', 'Fine-tuned from')], db_default='', default='', max_length=10, verbose_name='made by'),
        ),
        migrations.AddField(
            model_name='modelversion',
            name='model_card',
            field=models.TextField(blank=True, db_default='', default='', help_text='Markdown. What it is for, what it was trained on, where it fails.', validators=[django.core.validators.MaxLengthValidator(262144)]),
        ),
        migrations.AddField(
            model_name='modelversion',
            name='parent',
            field=models.ForeignKey(blank=True, help_text='The version that it was made of.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='children', to='registry.modelversion'),
        ),
        migrations.AddField(
            model_name='modelversion',
            name='stage',
            field=models.CharField(choices=[('draft', 'Draft'), ('verified', 'Verified'), ('approved', 'Approved'), ('retired', 'Retired')], db_default='draft', default='draft', editable=False, max_length=8),
        ),
        migrations.AddConstraint(
            model_name='modelversion',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('lineage', ''), ('parent', None)), models.Q(('lineage__gt', ''), ('parent__isnull', False)), _connector='OR'), name='modelversion_parent_lineage'),
        ),
        migrations.AddField(
            model_name='stagemove',
            name='version',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='moves', to='registry.modelversion'),
        ),
        migrations.AddField(
            model_name='versiontag',
            name='version',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='tags', to='registry.modelversion'),
        ),
        migrations.AddConstraint(
            model_name='versiontag',
            constraint=models.UniqueConstraint(fields=('version', 'name'), name='versiontag_once'),
        ),
    ]
