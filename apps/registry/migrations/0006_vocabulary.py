from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('registry', '0005_artifacts'),
    ]

    operations = [
        migrations.AddField(
            model_name='modelversion',
            name='vocabulary_sha256',
            field=models.CharField(blank=True, db_default='', default='', editable=False, max_length=64),
        ),
    ]
