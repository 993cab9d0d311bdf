import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0009_weights_fp8'),
        ('engines', '0008_disks'),
    ]

    operations = [
        migrations.AddField(
            model_name='deployment',
            name='tensor_parallel',
            field=models.PositiveSmallIntegerField(db_default=1, default=1, help_text='GPUs of one machine that hold the model together, each its part of every layer. For what is too large for one, or must answer faster.', validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(8)], verbose_name='devices of a replica'),
        ),
        migrations.AddField(
            model_name='deployment',
            name='sleep_after_s',
            field=models.PositiveIntegerField(blank=True, help_text="Without work for so long, an engine gives its GPU's memory back until the next request. Placement keeps that memory for it. Empty: never.", null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(604800)], verbose_name='sleeps after, seconds'),
        ),
        migrations.AddField(
            model_name='deployment',
            name='host_kv_cache_bytes',
            field=models.PositiveBigIntegerField(blank=True, help_text="Of each replica, for prompts' beginnings that find no room on the GPU any more and for requests that are put off. Empty: none.", null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1125899906842624)], verbose_name='host memory for the cache, bytes'),
        ),
        migrations.AddField(
            model_name='deployment',
            name='disk_kv_cache_bytes',
            field=models.PositiveBigIntegerField(blank=True, help_text='Of each replica, encrypted, for what finds no room in that host memory. Empty: none.', null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1125899906842624)], verbose_name='disk for the cache, bytes'),
        ),
        migrations.AddConstraint(
            model_name='deployment',
            constraint=models.CheckConstraint(condition=models.Q(('tensor_parallel__gte', 1), ('tensor_parallel__lte', 8)), name='deployment_devices_1_to_8'),
        ),
        migrations.AddConstraint(
            model_name='deployment',
            constraint=models.CheckConstraint(condition=models.Q(('disk_kv_cache_bytes__isnull', True), ('host_kv_cache_bytes__isnull', False), _connector='OR'), name='deployment_disk_below_host'),
        ),
        migrations.AddField(
            model_name='replica',
            name='devices',
            field=models.ManyToManyField(blank=True, related_name='placed', to='engines.device'),
        ),
        migrations.AddField(
            model_name='replica',
            name='lasting_bytes',
            field=models.PositiveBigIntegerField(blank=True, help_text='Of them, what it holds for as long as it is ready and awake.', null=True),
        ),
        migrations.AlterField(
            model_name='replica',
            name='estimated_bytes',
            field=models.PositiveBigIntegerField(blank=True, help_text='Reserved on each of its devices.', null=True),
        ),
        migrations.AlterField(
            model_name='replica',
            name='placed_generation',
            field=models.PositiveIntegerField(blank=True, help_text='Of the deployment, when it was given its devices.', null=True),
        ),
    ]
