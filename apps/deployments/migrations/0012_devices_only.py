from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0011_devices_copied'),
    ]

    operations = [
        migrations.RemoveField(
            model_name='replica',
            name='device',
        ),
        migrations.AlterField(
            model_name='replica',
            name='devices',
            field=models.ManyToManyField(blank=True, related_name='replicas', to='engines.device'),
        ),
    ]
