"""Says, before every page of a person's, whose rows it may touch."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

from apps.core.access import Access
from apps.core.tenancy import tenants_only, whichever_tenant
from apps.rbac.models import User
from apps.rbac.permissions import TENANT_PERMISSIONS


class TenantRowsGate(MiddlewareMixin):
    """Stands within ``begin_without_tenants``, after those who find out who asks."""

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        if isinstance(request.user, User):
            rows_open(request.user.access)
        return None


def rows_open(access: Access) -> None:
    """Let the work at hand touch the rows of every tenant, for who may see something of each, or of
    the tenants in which somebody has a role."""
    if access.is_superuser or access.platform & TENANT_PERMISSIONS:
        whichever_tenant()
    else:
        tenants_only(access.tenants)
