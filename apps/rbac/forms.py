"""Forms of the users' pages. Passwords are checked here and set by the service."""

from collections.abc import Collection
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Q
from unfold.forms import AdminPasswordChangeForm, UserChangeForm
from unfold.forms import UserCreationForm as UnfoldUserCreationForm
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
)

from apps.audit.types import Actor
from apps.rbac.models import ApiToken, Role, User
from apps.rbac.services import MAX_OVERLAP, user_password_set
from apps.rbac.types import DEFAULT_SCOPES, SCOPES


class UserAddForm(UnfoldUserCreationForm):  # type: ignore[misc]
    usable_password = None

    class Meta:
        model = User
        fields = ("username", "email", "is_staff", "is_superuser")


class UserEditForm(UserChangeForm):  # type: ignore[misc]
    class Meta:
        model = User
        fields = "__all__"


class MemberAddForm(forms.ModelForm):  # type: ignore[type-arg]
    """Names somebody instead of choosing from everyone: who may add members of one tenant need not
    see who else there is."""

    person = forms.CharField(
        label="Person", help_text="User name or e-mail address.", widget=UnfoldAdminTextInputWidget
    )
    role = forms.ModelChoiceField(
        queryset=Role.objects.all(),
        help_text="What they may do in the tenant.",
        widget=UnfoldAdminSelectWidget,
    )

    class Meta:
        fields = ("tenant",)

    def clean_person(self) -> User:
        name = self.cleaned_data["person"].strip()
        people = User.objects.filter(is_active=True, is_service=False)
        found = list(people.filter(Q(username=name) | Q(email__iexact=name))[:2])
        if len(found) != 1:
            raise ValidationError("There is no active user of this name or address.")
        return found[0]


class ServiceAccountForm(forms.Form):
    """tenant_ids: where one may be made; None is anywhere."""

    tenant: Any = forms.ModelChoiceField(queryset=None, widget=UnfoldAdminSelectWidget)
    name = forms.CharField(max_length=150, widget=UnfoldAdminTextInputWidget)
    role = forms.ModelChoiceField(queryset=Role.objects.all(), widget=UnfoldAdminSelectWidget)

    def __init__(self, *args: Any, tenant_ids: Collection[int] | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        tenants: Any = ApiToken._meta.get_field("tenant").related_model
        rows = tenants._default_manager.filter(is_active=True)
        self.fields["tenant"].queryset = (  # type: ignore[attr-defined]
            rows if tenant_ids is None else rows.filter(pk__in=tenant_ids)
        )


class TokenForm(forms.ModelForm):  # type: ignore[type-arg]
    scopes = forms.MultipleChoiceField(
        choices=[(scope, scope.capitalize()) for scope in SCOPES],
        initial=list(DEFAULT_SCOPES),
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="What the token may be used for. To manage, it must have an owner.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "allowed_networks" in self.fields:
            self.fields["allowed_networks"].widget.attrs["rows"] = 3


class RotateForm(forms.Form):
    overlap_hours = forms.IntegerField(
        label="Overlap in hours",
        initial=24,
        min_value=0,
        max_value=MAX_OVERLAP.days * 24,
        help_text="For so long the old token stays good beside the new one.",
        widget=UnfoldAdminIntegerFieldWidget,
    )


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
