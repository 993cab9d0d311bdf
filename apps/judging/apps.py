from django.apps import AppConfig


class JudgingConfig(AppConfig):
    name = "apps.judging"
    label = "judging"
    verbose_name = "Comparing"

    def ready(self) -> None:
        from apps.judging import pruning

        pruning.register()
