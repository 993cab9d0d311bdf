from django.apps import AppConfig


class EnginesConfig(AppConfig):
    name = "apps.engines"
    label = "engines"
    verbose_name = "Engines"

    def ready(self) -> None:
        from apps.engines import pruning

        pruning.register()
