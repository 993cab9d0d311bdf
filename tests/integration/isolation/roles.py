"""Every role that comes with the platform, the short form's apart from those of the long one's."""

from typing import Any, Final

import pytest
from django.apps import apps

from apps.rbac.builtin_roles import BUILTIN_ROLES, BuiltinRole

PERMISSIONS: Final = [
    f"{model._meta.app_label}.{codename}"
    for model in apps.get_models()
    for codename in (
        *(f"{verb}_{model._meta.model_name}" for verb in model._meta.default_permissions),
        *(codename for codename, _ in model._meta.permissions),
    )
]


def given(role: BuiltinRole) -> set[str]:
    return {permission for permission in PERMISSIONS if role.gives(permission)}


def lies_between(role: BuiltinRole) -> bool:
    """True where another role gives all that it gives, and it all that a third one gives: what it
    is shown the one is shown, and what it is refused the other is refused."""
    mine = given(role)
    others = [given(each) for each in BUILTIN_ROLES if each is not role]
    return any(mine < each for each in others) and any(each < mine for each in others)


def roles() -> list[Any]:
    """What to try a test with: roles at an end always, those between in the long form."""
    return [
        pytest.param(role.slug, marks=pytest.mark.prove) if lies_between(role) else role.slug
        for role in BUILTIN_ROLES
    ]
