from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0007_draining'),
    ]

    operations = [
        migrations.AddField(
            model_name='deployment',
            name='backend',
            field=models.CharField(choices=[('native', 'Ours'), ('nanovllm', 'nano-vllm')], db_default='native', default='native', help_text='nano-vllm is a package of others: Qwen3 on a GPU, and fewer parameters.', max_length=10, verbose_name='engine'),
        ),
    ]
