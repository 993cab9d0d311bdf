from django.db import migrations, models


class Migration(migrations.Migration):
    """With a default of the database's own: a process of the release before goes on writing rows."""

    dependencies = [("metering", "0005_refusals")]

    operations = [
        migrations.AddField(
            model_name="usagerecord",
            name="is_fallback",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Its deployment is of the route's chain for overload and failure.",
            ),
        ),
    ]
