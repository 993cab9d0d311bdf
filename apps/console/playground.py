"""The playground: a page of the admin that chats over the public WebSocket door. It serves the page
and the list of models; messages never pass here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_POST, require_safe

from apps.core.exceptions import AppError, InvalidRequest, PermissionDenied
from apps.deployments.selectors import deployments_running
from apps.feedback.services import feedback_give
from apps.feedback.types import Rating, Teller
from apps.rbac.selectors import person_of, principal_of_user
from apps.routing.selectors import snapshot
from apps.routing.types import PublicModel

if TYPE_CHECKING:
    from apps.rbac.models import User

API_PATH: Final = "/v1"
STREAM_PATH: Final = "/v1/stream"
REQUEST_ID: Final = "REQUEST_ID"  # in addresses that the page fills in
_INFERENCE: Final = "inference"

IDEAS: Final = (
    {"icon": "water", "prompt": "Write a short poem about the sea."},
    {"icon": "lightbulb", "prompt": "Explain in simple words why the sky is blue."},
    {"icon": "list", "prompt": "Give me three tips for writing clear emails."},
    {"icon": "code", "prompt": "Write a Python function that reverses a string."},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaygroundModel:
    """A route as the picker shows it; without a length while its deployment is stopped."""

    name: str
    is_ready: bool
    context_length: int | None


def playground_models(user: "User") -> list[PlaygroundModel]:
    """Return the active routes that somebody can chat with, by name; none for who has no tenant."""
    try:
        principal = principal_of_user(user)
    except PermissionDenied:
        return []
    routing = snapshot()
    context_lengths = {
        deployment.pk: deployment.context_length for deployment in deployments_running()
    }
    return [
        PlaygroundModel(
            name=model.name,
            is_ready=routing.is_ready(model),
            context_length=_least(model, context_lengths),
        )
        for _, model in sorted(routing.routes.items())
        if model.task == "generate" and model.is_for(principal)
    ]


def _least(model: PublicModel, context_lengths: Mapping[int, int]) -> int | None:
    ids = (each.deployment_id for each in model.everywhere)
    return min((context_lengths[pk] for pk in ids if pk in context_lengths), default=None)


def playground_urls(site: AdminSite) -> list[URLPattern]:
    return [
        path(
            "playground/",
            site.admin_view(playground_page),
            kwargs={"site": site},
            name="playground",
        ),
        path(
            "playground/models/",
            site.admin_view(playground_models_json),
            name="playground_models",
        ),
        path(
            "playground/feedback/<str:request_id>/",
            site.admin_view(playground_feedback),
            name="playground_feedback",
        ),
    ]


@require_safe
def playground_page(request: HttpRequest, *, site: AdminSite) -> HttpResponse:
    """The page. The site wraps it, so that only staff come this far."""
    data = {
        "owner": request.user.pk,
        "api_path": API_PATH,
        "stream_path": STREAM_PATH,
        "models_url": reverse("admin:playground_models"),
        "feedback_url": reverse("admin:playground_feedback", args=[REQUEST_ID]),
        "csrf_token": get_token(request),
        "ledger_url": _list_url(request, app="metering", model="usagerecord"),
        "models": [asdict(model) for model in playground_models(person_of(request))],
    }
    context = {
        **site.each_context(request),
        "title": "Playground",
        "ideas": IDEAS,
        "playground_data": data,
        "tokens_url": _list_url(request, app="rbac", model="apitoken"),
        "login_url": f"{reverse('admin:login')}?next={request.path}",
    }
    return TemplateResponse(request, "console/playground.html", context)


@require_safe
def playground_models_json(request: HttpRequest) -> HttpResponse:
    """What the page asks for again, so that a model that becomes ready shows without a reload."""
    return JsonResponse(
        {"models": [asdict(model) for model in playground_models(person_of(request))]}
    )


@require_POST
def playground_feedback(request: HttpRequest, request_id: str) -> HttpResponse:
    """Keep a thumb, as ``POST /v1/feedback`` does; for who may use the stream that the answer came
    by."""
    try:
        principal = principal_of_user(person_of(request))
        if _INFERENCE not in principal.scopes:
            raise PermissionDenied
        rating = _rating_in(request)
        event = feedback_give(request_id=request_id, rating=rating, teller=Teller.of(principal))
    except AppError as error:
        return JsonResponse(error.body(), status=error.status)
    return JsonResponse({"request_id": event.request_id, "rating": rating.value})


def _rating_in(request: HttpRequest) -> Rating:
    try:
        return Rating(request.POST.get("rating", ""))
    except ValueError:
        raise InvalidRequest("Say 'up' or 'down'.", code="invalid_value", param="rating") from None


def _list_url(request: HttpRequest, *, app: str, model: str) -> str:
    """Return an admin list's address, or nothing for someone who may not see it."""
    user = request.user
    if not user.is_authenticated or not user.has_perm(f"{app}.view_{model}"):
        return ""
    return reverse(f"admin:{app}_{model}_changelist")
