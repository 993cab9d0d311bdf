"""The pages of single sign-on: to the provider, back from it, and what is said when that does not
end well. They exist where a provider is configured."""

from typing import TYPE_CHECKING, Any, Final, cast

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from apps.console.forms import ConfirmForm
from apps.console.sign_in import NEXT, location_after
from apps.core.exceptions import AppError
from apps.sign_in.exceptions import SignInRefused
from apps.sign_in.selectors import facts_of, is_single_sign_on_on, session_standing
from apps.sign_in.services.devices import identity_confirm
from apps.sign_in.services.single_sign_on import (
    flow_begin,
    flow_end,
    identity_link,
    provider_sign_out,
    single_sign_on,
)
from apps.sign_in.types import ProviderFlow, Standing

if TYPE_CHECKING:
    from apps.rbac.models import User

_LOGOUT_TOKEN_CHARS: Final = 16_384


def single_sign_on_urls(site: AdminSite) -> list[URLPattern]:
    if not is_single_sign_on_on():
        return []
    kwargs = {"site": site}
    return [
        path("login/sso/", start, kwargs, name="sso_start"),
        path("login/sso/callback/", callback, kwargs, name="sso_callback"),
        path("login/sso/logout/", back_channel_logout, name="sso_logout"),
        path("account/single-sign-on/", site.admin_view(link), kwargs, name="sso_link"),
    ]


@never_cache
@require_safe
def start(request: HttpRequest, *, site: AdminSite) -> HttpResponseBase:
    """Where the button of the login page leads."""
    return _leave(request, site, ProviderFlow(next=location_after(request)))


@never_cache
@require_safe
def callback(request: HttpRequest, *, site: AdminSite) -> HttpResponseBase:
    """Where the provider sends the browser back to."""
    try:
        flow, person = flow_end(request)
        if flow.linking is not None:
            identity_link(request=request, user=_linking(request, flow), person=person)
        elif not single_sign_on(request=request, person=person):
            query = urlencode({NEXT: flow.next})
            return HttpResponseRedirect(f"{reverse('admin:login_code')}?{query}")
    except AppError as error:
        return _refused(request, site, error)
    return HttpResponseRedirect(flow.next)


@csrf_exempt  # the provider's own request: what it carries is signed
@never_cache
@require_POST
def back_channel_logout(request: HttpRequest) -> HttpResponse:
    """OpenID Connect Back-Channel Logout 1.0."""
    try:
        provider_sign_out(
            request=request,
            logout_token=request.POST.get("logout_token", "")[:_LOGOUT_TOKEN_CHARS],
        )
    except SignInRefused as error:
        return HttpResponse(error.message, status=400, content_type="text/plain")
    except AppError as error:
        return HttpResponse(error.message, status=error.status, content_type="text/plain")
    return HttpResponse()


@sensitive_post_parameters("password", "code")
@require_http_methods(["GET", "HEAD", "POST"])
def link(request: HttpRequest, *, site: AdminSite) -> HttpResponseBase:
    """Connect one's own account: confirmed as whatever else changes how one signs in."""
    user = cast("User", request.user)
    form = ConfirmForm(
        request.POST or None,
        has_device=facts_of(user).device_id is not None,
        has_password=user.has_usable_password(),
    )
    if form.is_valid():
        confirmed = {name: form.cleaned_data.get(name, "") for name in ("password", "code")}
        try:
            identity_confirm(request=request, user=user, **confirmed)
        except AppError as error:
            form.add_error(None, error.message)
        else:
            flow = ProviderFlow(next=reverse("admin:account"), linking=user.pk)
            return _leave(request, site, flow)
    context = {
        **site.each_context(request),
        "title": "Connect single sign-on",
        "form": form,
        "says": "You sign in there next, and are connected with whoever you are there.",
        "submit": "Go on",
    }
    return TemplateResponse(request, "console/two_factor_confirm.html", context)


def leave_page(request: HttpRequest, site: AdminSite, *, url: str, title: str) -> HttpResponse:
    """A page that goes on to the provider by itself. After a form, browsers take a redirect for
    part of it, and forms may lead nowhere else."""
    context = {**site.each_context(request), "title": title, "url": url}
    response = TemplateResponse(request, "console/leave.html", context)
    response["Refresh"] = f"0; url={url}"
    response["Cache-Control"] = "no-store"
    return response


def _leave(request: HttpRequest, site: AdminSite, flow: ProviderFlow) -> HttpResponseBase:
    redirect_uri = request.build_absolute_uri(reverse("admin:sso_callback"))
    try:
        url = flow_begin(request, redirect_uri=redirect_uri, flow=flow)
    except AppError as error:
        return _refused(request, site, error)
    if request.method == "POST":
        return leave_page(request, site, url=url, title="On to your provider")
    return HttpResponseRedirect(url)


def _linking(request: HttpRequest, flow: ProviderFlow) -> "User":
    """Return who began to connect their account, if it is they who come back."""
    user: Any = request.user
    standing = session_standing(user=user, session=request.session)
    if user.pk != flow.linking or standing is not Standing.COMPLETE:
        raise PermissionDenied
    return user  # type: ignore[no-any-return]


def _refused(request: HttpRequest, site: AdminSite, error: AppError) -> HttpResponse:
    context = {
        **site.each_context(request),
        "title": "Not signed in",
        "says": error.message,
        "login_url": reverse("admin:login"),
    }
    response = TemplateResponse(
        request, "console/sign_in_refused.html", context, status=error.status
    )
    response["Cache-Control"] = "no-store"
    return response
