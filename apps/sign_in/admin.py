"""Pages about signing in: of each person whether they have a second factor, and the attempts that
failed. The secrets of devices have no page: the libraries' own are taken away."""

from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice
from unfold.enums import ActionVariant

from apps.audit.selectors import actor_of
from apps.core.admin import ReadOnlyAdmin, action, dialog_redirect, display, refused
from apps.core.exceptions import AppError
from apps.sign_in.models import FailedSignIn, Person
from apps.sign_in.selectors import failed_sign_ins, with_facts
from apps.sign_in.services.devices import two_factor_policy_set, two_factor_reset
from apps.sign_in.services.locks import lock_lift
from apps.sign_in.services.sessions import sessions_end
from apps.sign_in.services.single_sign_on import identity_remove

for _model in (TOTPDevice, StaticDevice):
    if admin.site.is_registered(_model):
        admin.site.unregister(_model)

_LIST = "admin:sign_in_person_changelist"


def _dialog(title: str, description: str, submit: str) -> dict[str, Any]:
    return {
        "title": title,
        "description": description,
        "form_class": None,
        "form_submit_text": submit,
    }


@admin.register(Person)
class PersonAdmin(ReadOnlyAdmin):
    list_display = ("username", "second_factor", "policy", "state", "last_login")
    list_filter = ("is_active", "is_staff")
    search_fields = ("username", "email")
    ordering = ("username",)
    sortable_by = ("username", "last_login")
    fieldsets = (
        (None, {"fields": (("username", "state"), ("second_factor", "policy"), "last_login")}),
    )
    readonly_fields = ("second_factor", "policy", "state")
    actions_detail = ("reset", "sign_out", "require", "release", "disconnect")
    actions_row = ("reset", "sign_out", "require", "release", "disconnect")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Person]:
        return with_facts(super().get_queryset(request))

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("sign_in.view_person")

    def has_superuser_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    @display(description="Second factor", label={"Enrolled": "success", "None": "warning"})
    def second_factor(self, person: Any) -> str:
        return "Enrolled" if person.fact_device_id is not None else "None"

    @display(description="Policy")
    def policy(self, person: Any) -> str:
        if settings.TWO_FACTOR_REQUIRED:
            return "Required of everybody"
        return "Required" if person.fact_is_required else "Not required"

    @display(description="State", label={"Active": "success", "Off": "danger"})
    def state(self, person: Person) -> str:
        return "Active" if person.is_active else "Off"

    @action(
        description="Reset second factor",
        permissions=["superuser"],
        icon="phonelink_erase",
        variant=ActionVariant.DANGER,
        dialog=_dialog(
            "Reset this person's second factor?",
            "Their authenticator and backup codes are void and they are signed out everywhere. "
            "Until they enrol anew, their password alone lets them in.",
            "Reset",
        ),
    )
    def reset(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        person = get_object_or_404(Person, pk=object_id)
        try:
            had = two_factor_reset(user=person, actor=actor_of(request))
        except AppError as error:
            refused(request, error, location=reverse(_LIST))
        else:
            said = "is reset" if had else "was not enrolled"
            messages.success(request, f"The second factor of {person} {said}.")
        return dialog_redirect(request, reverse(_LIST))

    @action(
        description="Sign out everywhere",
        permissions=["superuser"],
        icon="logout",
        dialog=_dialog(
            "Sign this person out everywhere?",
            "Every session of theirs ends; they can sign in again.",
            "Sign out",
        ),
    )
    def sign_out(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        person = get_object_or_404(Person, pk=object_id)
        sessions_end(user=person, actor=actor_of(request))
        messages.success(request, f"{person} is signed out everywhere.")
        return dialog_redirect(request, reverse(_LIST))

    @action(
        description="Require second factor",
        permissions=["superuser"],
        icon="gpp_good",
        dialog=_dialog(
            "Require a second factor of this person?",
            "Until they have enrolled one, they can open nothing else.",
            "Require",
        ),
    )
    def require(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._policy_set(request, object_id, is_required=True)

    @action(
        description="Leave it to the platform",
        permissions=["superuser"],
        icon="gpp_maybe",
        dialog=_dialog(
            "Leave a second factor to the platform's setting?",
            "Nothing is required of this person beyond it. What they have enrolled stays.",
            "Leave",
        ),
    )
    def release(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return self._policy_set(request, object_id, is_required=False)

    @action(
        description="Forget single sign-on",
        permissions=["superuser"],
        icon="link_off",
        variant=ActionVariant.DANGER,
        dialog=_dialog(
            "Forget who this person is at the single sign-on provider?",
            "They are signed out everywhere and lose what their groups gave. They come back by "
            "a password, if they have one.",
            "Forget",
        ),
    )
    def disconnect(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        person = get_object_or_404(Person, pk=object_id)
        had = identity_remove(user=person, actor=actor_of(request))
        said = "is forgotten" if had else "was not connected"
        messages.success(request, f"Single sign-on of {person} {said}.")
        return dialog_redirect(request, reverse(_LIST))

    def _policy_set(
        self, request: HttpRequest, object_id: str, *, is_required: bool
    ) -> HttpResponse:
        person = get_object_or_404(Person, pk=object_id)
        two_factor_policy_set(user=person, is_required=is_required, actor=actor_of(request))
        said = "is required" if is_required else "is left to the platform's setting"
        messages.success(request, f"A second factor of {person} {said}.")
        return dialog_redirect(request, reverse(_LIST))


@admin.register(FailedSignIn)
class FailedSignInAdmin(ReadOnlyAdmin):
    """Names that nobody has are not shown: people type passwords there."""

    list_display = ("name", "ip_address", "failures_since_start", "attempt_time", "state")
    search_fields = ("username", "ip_address")
    search_help_text = "A name that somebody has, or an address"
    ordering = ("-attempt_time", "-id")
    sortable_by = ("attempt_time",)
    fieldsets = (
        (None, {"fields": (("name", "ip_address"), ("failures_since_start", "attempt_time"))}),
        (None, {"fields": ("state", "user_agent")}),
    )
    readonly_fields = ("name", "state")
    actions_detail = ("lift",)
    actions_row = ("lift",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedSignIn]:
        return failed_sign_ins()

    def get_search_results(
        self, request: HttpRequest, queryset: Any, search_term: str
    ) -> tuple[Any, bool]:
        """What is not shown is not found either: it could be guessed letter by letter."""
        term = search_term.strip()
        if not term:
            return queryset, False
        named = Q(is_known=True, username__icontains=term)
        return queryset.filter(named | Q(ip_address__startswith=term)), False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("sign_in.view_failedsignin")

    def has_lift_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        return request.user.has_perm("sign_in.change_failedsignin")

    @display(description="Name")
    def name(self, row: Any) -> str:
        return row.username if row.is_known else "(a name that nobody has)"

    @display(description="State", label={"Counted": "", "Locked": "danger"})
    def state(self, row: Any) -> str | tuple[str, str]:
        if row.n_together < settings.AXES_FAILURE_LIMIT:
            return "Counted"
        until = timezone.localtime(row.last_together + settings.AXES_COOLOFF_TIME)
        return "Locked", f"Locked until {until:%H:%M:%S}"

    @action(
        description="Lift",
        permissions=["lift"],
        icon="lock_open",
        dialog=_dialog(
            "Forget these failures?",
            "The name can be tried from this address again at once.",
            "Lift the lock",
        ),
    )
    def lift(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        row = get_object_or_404(FailedSignIn, pk=object_id)
        lock_lift(username=row.username, address=row.ip_address, actor=actor_of(request))
        messages.success(request, "The failures are forgotten.")
        return dialog_redirect(request, reverse("admin:sign_in_failedsignin_changelist"))
