"""Finds the person of a session, and with them what says whether the session is complete."""

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser

from apps.rbac.backends import RoleBackend
from apps.sign_in.selectors import facts_attach, with_facts


class PersonBackend(RoleBackend):
    """The access room's, but one query brings the facts of signing in along with the user."""

    def get_user(self, user_id: int) -> AbstractBaseUser | None:  # type: ignore[override]
        user = with_facts(get_user_model()._default_manager.filter(pk=user_id)).first()
        if user is None or not self.user_can_authenticate(user):
            return None
        facts_attach(user, user)
        return user
