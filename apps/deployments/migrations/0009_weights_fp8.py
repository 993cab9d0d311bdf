from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0008_backend'),
    ]

    operations = [
        migrations.AlterField(
            model_name='deployment',
            name='quantization',
            field=models.CharField(choices=[('none', 'As they are'), ('int8', 'int8'), ('fp8', 'fp8')], default='none', help_text='int8 and fp8 halve them when they are loaded. On a processor int8 needs the compiled kernels; fp8 needs a GPU.', max_length=8, verbose_name='weights'),
        ),
    ]
