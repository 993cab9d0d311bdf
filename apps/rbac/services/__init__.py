"""Writes of the access room. Tokens and people are switched off, never deleted, because the ledger
and the audit trail speak of them."""

from apps.rbac.services.groups import (
    group_mapping_add,
    group_mapping_delete,
    mapped_grants_apply,
)
from apps.rbac.services.jwt import (
    jwt_key_rotate,
    token_family_end,
    token_family_revoke,
    token_pair_issue,
    token_pair_refresh,
)
from apps.rbac.services.objects import object_permissions_change
from apps.rbac.services.roles import (
    member_add,
    member_remove,
    role_delete,
    role_grant,
    role_grant_remove,
    role_save,
    roles_seed,
    service_account_create,
)
from apps.rbac.services.tokens import (
    MAX_OVERLAP,
    api_token_issue,
    api_token_lend_check,
    api_token_revoke,
    api_token_rotate,
    api_token_touch,
    api_token_update,
)
from apps.rbac.services.users import (
    person_create,
    user_create,
    user_password_set,
    user_permissions_set,
    user_update,
)

__all__ = [
    "MAX_OVERLAP",
    "api_token_issue",
    "api_token_lend_check",
    "api_token_revoke",
    "api_token_rotate",
    "api_token_touch",
    "api_token_update",
    "group_mapping_add",
    "group_mapping_delete",
    "jwt_key_rotate",
    "mapped_grants_apply",
    "member_add",
    "member_remove",
    "object_permissions_change",
    "person_create",
    "role_delete",
    "role_grant",
    "role_grant_remove",
    "role_save",
    "roles_seed",
    "service_account_create",
    "token_family_end",
    "token_family_revoke",
    "token_pair_issue",
    "token_pair_refresh",
    "user_create",
    "user_password_set",
    "user_permissions_set",
    "user_update",
]
