from django.apps import AppConfig


class MeteringConfig(AppConfig):
    name = "apps.metering"
    label = "metering"
    verbose_name = "Metering"

    def ready(self) -> None:
        from apps.metering import pruning

        pruning.register()
