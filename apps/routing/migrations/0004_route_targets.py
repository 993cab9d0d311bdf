import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

NAME = django.core.validators.RegexValidator(
    "^[A-Za-z0-9][A-Za-z0-9._:/-]*$", "Use letters, digits and . _ : / - only."
)


class Migration(migrations.Migration):
    """Where routes lead gets rows of its own. The column that said it so far stays for a while."""

    dependencies = [
        ("deployments", "0003_remote_servers"),
        ("routing", "0003_route_caches_responses"),
    ]

    operations = [
        migrations.AddField(
            model_name="route",
            name="defaults",
            field=models.JSONField(
                blank=True,
                db_default={},
                default=dict,
                help_text="What holds where a request says nothing, by the names of its fields.",
            ),
        ),
        migrations.CreateModel(
            name="RouteAlias",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=120, unique=True, validators=[NAME])),
                (
                    "route",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="aliases",
                        to="routing.route",
                    ),
                ),
            ],
            options={"ordering": ["name"], "default_permissions": ()},
        ),
        migrations.CreateModel(
            name="RouteTarget",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "weight",
                    models.PositiveSmallIntegerField(
                        default=0,
                        help_text="Its share among the weights of all. 0: no share.",
                        validators=[django.core.validators.MaxValueValidator(1000)],
                    ),
                ),
                (
                    "fallback_order",
                    models.PositiveSmallIntegerField(
                        blank=True,
                        help_text="Its place in the chain of those that are asked on overload or "
                        "failure.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="fallback",
                    ),
                ),
                (
                    "deployment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="route_targets",
                        to="deployments.deployment",
                    ),
                ),
                (
                    "route",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="targets",
                        to="routing.route",
                    ),
                ),
            ],
            options={
                "ordering": [
                    models.OrderBy(models.F("fallback_order"), nulls_first=True),
                    "-weight",
                    "id",
                ],
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("route", "deployment"), name="route_target_uniq"
                    ),
                    models.UniqueConstraint(
                        fields=("route", "fallback_order"), name="route_fallback_order_uniq"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("weight", 0), ("fallback_order", None), _connector="OR"
                        ),
                        name="route_target_one_way",
                        violation_error_message="Give either a weight or a place among the "
                        "fallbacks.",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("weight__lte", 1000)),
                        name="route_target_weight_bound",
                    ),
                ],
            },
        ),
        # So that it can be taken back: the column then comes again, and is filled, empty at first.
        migrations.AlterField(
            model_name="route",
            name="deployment",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="routes",
                to="deployments.deployment",
            ),
        ),
    ]
