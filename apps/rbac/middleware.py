"""Says, before every page of a person's, whose rows it may touch."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

from apps.rbac.models import User
from apps.rbac.permissions import rows_open


class TenantRowsGate(MiddlewareMixin):
    """Stands within ``begin_without_tenants``, after those who find out who asks."""

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        if isinstance(request.user, User):
            rows_open(request.user.access)
        return None
