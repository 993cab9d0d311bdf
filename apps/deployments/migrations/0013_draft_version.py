import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0012_devices_only'),
        ('registry', '0006_vocabulary'),
    ]

    operations = [
        migrations.AddField(
            model_name='deployment',
            name='draft_version',
            field=models.ForeignKey(blank=True, help_text='A much smaller model with the same tokenizer, whose guesses this one checks several at a time: the same answers, sooner. Empty: none.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='registry.modelversion', verbose_name='draft model'),
        ),
        migrations.AddConstraint(
            model_name='deployment',
            constraint=models.CheckConstraint(condition=models.Q(('draft_version__isnull', True), models.Q(('backend', 'native'), ('host_kv_cache_bytes__isnull', True), ('remote__isnull', True), ('sleep_after_s__isnull', True), ('tensor_parallel', 1), models.Q(('draft_version', models.F('model_version')), _negated=True)), _connector='OR'), name='deployment_draft_alone'),
        ),
    ]
