"""Somebody's own account: their second factor, backup codes and sessions. Enrolment is open to
whoever must enrol; the rest to whoever is fully signed in."""

from typing import TYPE_CHECKING, Any, cast

from django.conf import settings
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import mark_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from apps.audit.selectors import actor_of
from apps.console.forms import ConfirmForm, EnrolForm
from apps.console.sign_in import code_step
from apps.core.exceptions import AppError
from apps.sign_in.exceptions import CodeWrong
from apps.sign_in.selectors import (
    facts_of,
    has_identity,
    is_single_sign_on_on,
    is_two_factor_required,
    n_backup_codes,
    session_standing,
)
from apps.sign_in.services.devices import (
    backup_codes_renew,
    draft_of_session,
    two_factor_enrol,
    two_factor_remove,
)
from apps.sign_in.services.sessions import sessions_end
from apps.sign_in.types import Standing

if TYPE_CHECKING:
    from apps.rbac.models import User

_secret_page = sensitive_post_parameters("password", "code", "new_code")
_form_page = require_http_methods(["GET", "HEAD", "POST"])


def account_urls(site: AdminSite) -> list[URLPattern]:
    def page(route: str, view: Any, name: str, *, is_open: bool = False) -> URLPattern:
        wrapped: Any = view if is_open else site.admin_view(view)
        pattern: URLPattern = path(route, wrapped, kwargs={"site": site}, name=name)
        return pattern

    return [
        page("login/code/", csrf_protect(code_step), "login_code", is_open=True),
        # The site's own would send whoever must enrol back to enrolment.
        path("logout/", csrf_protect(site.logout), name="logout"),
        page("account/", account_page, "account"),
        page("account/two-factor/", csrf_protect(enrol_page), "two_factor_enrol", is_open=True),
        page("account/two-factor/remove/", remove_page, "two_factor_remove"),
        page("account/two-factor/backup-codes/", codes_page, "backup_codes"),
        page("account/sign-out-everywhere/", sign_out_page, "sign_out_everywhere"),
    ]


@require_safe
def account_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    user = _person(request)
    facts, is_on = facts_of(user), is_single_sign_on_on()
    return _render(
        request,
        site,
        "console/account.html",
        title="My account",
        has_device=facts.device_id is not None,
        is_required=is_two_factor_required(facts),
        n_backup_codes=n_backup_codes(user),
        has_password=user.has_usable_password(),
        single_sign_on=settings.OIDC_NAME if is_on else "",
        is_linked=is_on and has_identity(user),
    )


@_secret_page
@never_cache
@_form_page
def enrol_page(request: HttpRequest, *, site: AdminSite) -> HttpResponseBase:
    """Enrol, or replace what there is. Not wrapped by the site, whose views are shut meanwhile."""
    standing = session_standing(user=request.user, session=request.session)
    if standing is Standing.OVER or not _person(request).is_staff:
        return HttpResponseRedirect(f"{reverse('admin:login')}?next={request.path}")
    user = _person(request)
    has_device = facts_of(user).device_id is not None
    form = EnrolForm(
        request.POST or None, has_device=has_device, has_password=user.has_usable_password()
    )
    if form.is_valid():
        try:
            codes = two_factor_enrol(
                request=request,
                user=user,
                **_confirmation(form),
                new_code=form.cleaned_data["new_code"],
            )
        except CodeWrong as error:
            form.add_error("new_code", error.message)
        except AppError as error:
            form.add_error(None, error.message)
        else:
            return _codes_shown(request, site, codes)
    draft = draft_of_session(request=request, user=user)
    return _render(
        request,
        site,
        "console/two_factor_enrol.html",
        title="Replace the second factor" if has_device else "Enrol a second factor",
        form=form,
        has_device=has_device,
        must_enrol=standing is Standing.MUST_ENROL,
        secret=draft.secret,
        url=draft.url,
        # Made by the library out of squares; nothing of what it encodes is in the markup.
        qr_svg=mark_safe(draft.qr_svg),  # noqa: S308
    )


@_secret_page
@_form_page
def remove_page(request: HttpRequest, *, site: AdminSite) -> HttpResponseBase:
    user = _person(request)
    form = _confirm_form(request)
    if form.is_valid():
        try:
            two_factor_remove(request=request, user=user, **_confirmation(form))
        except AppError as error:
            form.add_error(None, error.message)
        else:
            messages.success(request, "You sign in by your password alone now.")
            return HttpResponseRedirect(reverse("admin:account"))
    return _confirm_page(
        request,
        site,
        form,
        title="Remove the second factor",
        says="Your password alone will let in whoever knows it. Other sessions of yours end.",
        submit="Remove",
    )


@_secret_page
@_form_page
def codes_page(request: HttpRequest, *, site: AdminSite) -> HttpResponseBase:
    user = _person(request)
    form = _confirm_form(request)
    if form.is_valid():
        try:
            codes = backup_codes_renew(request=request, user=user, **_confirmation(form))
        except AppError as error:
            form.add_error(None, error.message)
        else:
            return _codes_shown(request, site, codes)
    return _confirm_page(
        request,
        site,
        form,
        title="New backup codes",
        says="The codes that you have are void then.",
        submit="Make new codes",
    )


@_form_page
def sign_out_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    """A look at it changes nothing: signing in again may lead here."""
    if request.method == "POST":
        sessions_end(user=_person(request), actor=actor_of(request), keep=request.session)
        messages.success(request, "You are signed out everywhere but here.")
    return HttpResponseRedirect(reverse("admin:account"))


def _person(request: HttpRequest) -> "User":
    return cast("User", request.user)


def _confirm_form(request: HttpRequest) -> ConfirmForm:
    user = _person(request)
    return ConfirmForm(
        request.POST or None,
        has_device=facts_of(user).device_id is not None,
        has_password=user.has_usable_password(),
    )


def _confirmation(form: ConfirmForm) -> dict[str, str]:
    return {name: form.cleaned_data.get(name, "") for name in ("password", "code")}


def _confirm_page(
    request: HttpRequest, site: AdminSite, form: ConfirmForm, **context: Any
) -> HttpResponse:
    return _render(request, site, "console/two_factor_confirm.html", form=form, **context)


def _codes_shown(request: HttpRequest, site: AdminSite, codes: tuple[str, ...]) -> HttpResponse:
    """Show them in this very answer: a redirect would have to keep them somewhere."""
    return _render(
        request, site, "console/backup_codes.html", title="Your backup codes", codes=codes
    )


def _render(request: HttpRequest, site: AdminSite, template: str, **context: Any) -> HttpResponse:
    response = TemplateResponse(request, template, {**site.each_context(request), **context})
    response["Cache-Control"] = "no-store"
    return response
