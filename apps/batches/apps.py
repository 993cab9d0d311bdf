from django.apps import AppConfig


class BatchesConfig(AppConfig):
    name = "apps.batches"
    label = "batches"
    verbose_name = "Batches"

    def ready(self) -> None:
        from apps.batches import pruning

        pruning.register()
