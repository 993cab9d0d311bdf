"""Paths of health, resolved by the lean handler in config/asgi.py."""

from django.urls import path

from apps.monitoring.views import healthz, readyz

urlpatterns = [path("healthz", healthz), path("readyz", readyz)]
