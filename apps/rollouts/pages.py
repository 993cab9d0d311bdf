"""What the room's pages share."""

from typing import Any

from django.apps import apps
from django.contrib.admin import AdminSite


def page_of(site: AdminSite, label: str) -> Any:
    """Return the admin's pages of a model: whose rows and permissions hold here as there."""
    return site.get_model_admin(apps.get_model(label))
