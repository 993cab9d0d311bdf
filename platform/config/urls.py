"""Pages of the full Django stack. The doors under /v1/ are mounted in config/asgi.py."""

from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
