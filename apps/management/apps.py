from django.apps import AppConfig


class ManagementConfig(AppConfig):
    name = "apps.management"
    label = "management"
    verbose_name = "Management API"
