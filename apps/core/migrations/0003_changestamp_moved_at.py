from django.db import migrations, models
from django.utils import timezone


class Migration(migrations.Migration):
    dependencies = [("core", "0002_heartbeat")]

    operations = [
        migrations.AlterField(
            model_name="changestamp",
            name="name",
            field=models.CharField(max_length=80, primary_key=True, serialize=False),
        ),
        migrations.AddField(
            model_name="changestamp",
            name="moved_at",
            field=models.DateTimeField(auto_now=True, default=timezone.now),
            preserve_default=False,
        ),
    ]
