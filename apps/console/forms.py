"""Forms of the console's own pages."""

from django.contrib.auth.base_user import AbstractBaseUser
from unfold.forms import AdminOwnPasswordChangeForm

from apps.audit.types import Actor
from apps.rbac.services import user_password_set


class OwnPasswordForm(AdminOwnPasswordChangeForm):  # type: ignore[misc]
    """Someone changes their own password, after giving the old one."""

    def save(self, commit: bool = True) -> AbstractBaseUser:
        actor = Actor(kind="user", id=self.user.pk, label=self.user.get_username())
        return user_password_set(
            user=self.user, password=self.cleaned_data["new_password1"], actor=actor
        )
