from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('engines', '0007_fetching'),
    ]

    operations = [
        migrations.AlterField(
            model_name='device',
            name='kind',
            field=models.CharField(choices=[('cpu', 'Processor'), ('cuda', 'GPU'), ('disk', 'Disk')], max_length=8),
        ),
        migrations.AlterField(
            model_name='device',
            name='auto_dtype',
            field=models.CharField(blank=True, help_text='What an engine computes in there if it is left the choice.', max_length=20),
        ),
    ]
