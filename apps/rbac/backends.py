"""Roles as Django's permission checks see them: ``user.has_perm`` asks here, from the admin as from
anywhere else."""

from typing import Any

from django.contrib.auth.backends import ModelBackend

from apps.core.access import Access
from apps.rbac.models import User
from apps.rbac.permissions import tenant_id_of


class RoleBackend(ModelBackend):
    """Signs people in as Django does. Without an object only what somebody holds everywhere counts;
    with a row of a tenant also what they hold in that tenant."""

    def has_perm(self, user_obj: Any, perm: str, obj: Any = None) -> bool:
        if not isinstance(user_obj, User):
            return False
        tenant_id = None if obj is None else tenant_id_of(obj)
        return user_obj.access.may(perm, tenant_id=tenant_id)

    def get_all_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        if not isinstance(user_obj, User):
            return set()
        access: Access = user_obj.access
        tenant_id = None if obj is None else tenant_id_of(obj)
        return set(access.platform | access.tenants.get(tenant_id or 0, frozenset()))

    def has_module_perms(self, user_obj: Any, app_label: str) -> bool:
        if not isinstance(user_obj, User):
            return False
        access = user_obj.access
        held = access.platform.union(*access.tenants.values())
        return any(name.partition(".")[0] == app_label for name in held)
