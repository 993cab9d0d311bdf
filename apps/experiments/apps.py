from django.apps import AppConfig


class ExperimentsConfig(AppConfig):
    name = "apps.experiments"
    label = "experiments"
    verbose_name = "Comparing"

    def ready(self) -> None:
        from apps.experiments.judged import experiments_judged_by
        from apps.judging.services import judge_uses_register

        judge_uses_register("experiments", experiments_judged_by)
