"""The roles that come with the platform, by what they let somebody do."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from apps.rbac.types import USE_ROUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinRole:
    """patterns: names of permissions that it gives, with ``*``. excluded: but not these."""

    slug: str
    name: str
    description: str
    patterns: tuple[str, ...]
    excluded: tuple[str, ...] = ()

    def gives(self, permission: str) -> bool:
        return _matches(permission, self.patterns) and not _matches(permission, self.excluded)


def _matches(permission: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(permission, pattern) for pattern in patterns)


_LOOK = (
    "registry.view_*", "engines.view_*", "deployments.view_*", "routing.view_*",
    "judging.view_*", "experiments.view_*", "rollouts.view_*", "metering.view_*",
    "feedback.view_*", "batches.view_*", "tenants.view_*",
)  # fmt: skip

BUILTIN_ROLES: Final = (
    BuiltinRole(
        slug="owner",
        name="Owner",
        description="Everything, roles and plans included.",
        patterns=("*",),
    ),
    BuiltinRole(
        slug="admin",
        name="Admin",
        description="Everything but what roles are and what plans allow.",
        patterns=("*",),
        excluded=(
            "rbac.add_role", "rbac.change_role", "rbac.delete_role",
            "tenants.add_plan", "tenants.change_plan", "tenants.delete_plan",
        ),
    ),
    BuiltinRole(
        slug="operator",
        name="Operator",
        description="Runs models: imports, deployments, routes, batches. Sees no people or tokens.",
        patterns=(
            *_LOOK, USE_ROUTE,
            "registry.*", "deployments.*", "routing.*", "judging.*", "rollouts.*",
            "experiments.*", "engines.*",
            "batches.change_batch",
        ),
        # What goes to production is not for those to say who put it there.
        excluded=("registry.approve_modelversion",),
    ),
    BuiltinRole(
        slug="developer",
        name="Developer",
        description="Uses models and issues tokens for it.",
        patterns=(
            USE_ROUTE, "registry.view_*", "deployments.view_*", "routing.view_*",
            "rollouts.view_*", "tenants.view_tenant", "tenants.*_enduser", "rbac.view_apitoken",
            "rbac.add_apitoken", "rbac.change_apitoken", "batches.*", "metering.view_*",
            "feedback.view_*",
        ),
    ),
    BuiltinRole(
        slug="auditor",
        name="Auditor",
        description="Sees everything and changes nothing.",
        patterns=("*.view_*",),
    ),
    BuiltinRole(
        slug="viewer",
        name="Viewer",
        description="Sees models, traffic and tenants; no people, tokens or audit trail.",
        patterns=_LOOK,
    ),
)  # fmt: skip
