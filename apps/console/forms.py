"""Forms of the console's own pages."""

from typing import Any

from django import forms
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from unfold.forms import AdminOwnPasswordChangeForm
from unfold.widgets import BASE_INPUT_CLASSES

from apps.audit.selectors import actor_of
from apps.rbac.services import user_password_set
from apps.sign_in.exceptions import ConfirmationFailed, SignInLocked
from apps.sign_in.services.devices import password_confirm

_CLASSES = " ".join(BASE_INPUT_CLASSES)
_CODE_CHARS = 32


class OwnPasswordForm(AdminOwnPasswordChangeForm):  # type: ignore[misc]
    """Someone changes their own password, after giving the old one."""

    def __init__(self, *args: Any, request: HttpRequest, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._request = request

    def clean_old_password(self) -> str:
        """A wrong one counts as a failed sign-in: else an open session would be a place to guess
        the password."""
        password: str = self.cleaned_data["old_password"]
        try:
            password_confirm(request=self._request, user=self.user, password=password)
        except SignInLocked as error:
            raise ValidationError(error.message) from error
        except ConfirmationFailed as error:
            message = self.error_messages["password_incorrect"]
            raise ValidationError(message, code="password_incorrect") from error
        return password

    def save(self, commit: bool = True) -> AbstractBaseUser:
        return user_password_set(
            user=self.user,
            password=self.cleaned_data["new_password1"],
            actor=actor_of(self._request),
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

    def __init__(
        self, *args: Any, has_device: bool, has_password: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not has_password:
            del self.fields["password"]
        if not has_device:
            del self.fields["code"]


class EnrolForm(ConfirmForm):
    new_code = _code_field(
        "Code of the new authenticator", help_text="Six digits that your app shows now."
    )
