"""The pages of access: people, members, roles, tokens."""

from apps.rbac.admin.families import TokenFamilyAdmin
from apps.rbac.admin.groups import GroupMappingAdmin
from apps.rbac.admin.members import MembershipAdmin
from apps.rbac.admin.roles import RoleAdmin
from apps.rbac.admin.tokens import ApiTokenAdmin
from apps.rbac.admin.users import UserAdmin

__all__ = [
    "ApiTokenAdmin",
    "GroupMappingAdmin",
    "MembershipAdmin",
    "RoleAdmin",
    "TokenFamilyAdmin",
    "UserAdmin",
]
