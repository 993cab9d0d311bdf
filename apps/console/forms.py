"""Forms of the console's own pages."""

from typing import Any

from django import forms
from django.contrib.auth.base_user import AbstractBaseUser
from unfold.forms import AdminOwnPasswordChangeForm
from unfold.widgets import BASE_INPUT_CLASSES

from apps.audit.types import Actor
from apps.rbac.services import user_password_set

_CLASSES = " ".join(BASE_INPUT_CLASSES)
_CODE_CHARS = 32


class OwnPasswordForm(AdminOwnPasswordChangeForm):  # type: ignore[misc]
    """Someone changes their own password, after giving the old one."""

    def save(self, commit: bool = True) -> AbstractBaseUser:
        actor = Actor(kind="user", id=self.user.pk, label=self.user.get_username())
        return user_password_set(
            user=self.user, password=self.cleaned_data["new_password1"], actor=actor
        )


def _code_field(label: str, *, help_text: str = "", is_first: bool = False) -> forms.CharField:
    attributes = {"class": _CLASSES, "autocomplete": "one-time-code", "spellcheck": "false"}
    if is_first:
        attributes["autofocus"] = ""
    return forms.CharField(
        label=label,
        help_text=help_text,
        max_length=_CODE_CHARS,
        widget=forms.TextInput(attributes),
    )


class CodeForm(forms.Form):
    """The second step of signing in."""

    code = _code_field(
        "Code", help_text="Six digits from your app, or a backup code.", is_first=True
    )


class ConfirmForm(forms.Form):
    """Whoever sits there is asked for the password again, and for a code if there is a device."""

    password = forms.CharField(
        label="Your password",
        strip=False,
        max_length=4096,
        widget=forms.PasswordInput({"class": _CLASSES, "autocomplete": "current-password"}),
    )
    code = _code_field(
        "Code of the present authenticator", help_text="Six digits, or a backup code."
    )

    def __init__(self, *args: Any, has_device: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not has_device:
            del self.fields["code"]


class EnrolForm(ConfirmForm):
    new_code = _code_field(
        "Code of the new authenticator", help_text="Six digits that your app shows now."
    )
