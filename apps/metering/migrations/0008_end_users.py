from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('metering', '0007_comparisons'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='usagerecord',
            index=models.Index(condition=models.Q(('end_user__gt', '')), fields=['tenant_id', 'end_user', 'created_at'], name='usage_end_user_idx'),
        ),
    ]
