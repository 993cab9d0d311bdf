"""Forms of the users' pages. Passwords are checked here and set by the service."""

from typing import Any

from unfold.forms import AdminPasswordChangeForm, UserChangeForm
from unfold.forms import UserCreationForm as UnfoldUserCreationForm

from apps.audit.types import Actor
from apps.rbac.models import User
from apps.rbac.services import user_password_set


class UserAddForm(UnfoldUserCreationForm):  # type: ignore[misc]
    usable_password = None

    class Meta:
        model = User
        fields = ("username", "email", "is_staff", "is_superuser")


class UserEditForm(UserChangeForm):  # type: ignore[misc]
    class Meta:
        model = User
        fields = "__all__"


class ServicePasswordForm(AdminPasswordChangeForm):  # type: ignore[misc]
    """An administrator sets someone's password."""

    usable_password = None

    def __init__(self, user: User, *args: Any, actor: Actor, **kwargs: Any) -> None:
        super().__init__(user, *args, **kwargs)
        self._actor = actor

    def save(self, commit: bool = True) -> User:
        return user_password_set(
            user=self.user, password=self.cleaned_data["password1"], actor=self._actor
        )
