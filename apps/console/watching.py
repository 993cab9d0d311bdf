"""What is shown of deployments while they run: the part of a deployment's page that follows it, and
the words that every page of them is renewed with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.contrib.admin import AdminSite
from django.http import Http404, HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.views.decorators.http import require_safe

from apps.console.health import deployment_card
from apps.console.plots import RANGES, plots_of
from apps.console.types import DeploymentCard, EngineCard
from apps.core.access import access_in
from apps.core.exceptions import NotFound
from apps.deployments.selectors import (
    deployment_watched,
    deployments_visible_to,
    engine_names,
)
from apps.engines.selectors import engine_crashes, engine_samples
from apps.rbac.selectors import person_of

if TYPE_CHECKING:
    from apps.deployments.models import Deployment

N_CRASHES: Final = 5
LOG_PERMISSION: Final = "engines.view_engineprocess"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What is renewed in place, by the names that pages mark it with. tones: of badges."""

    texts: Mapping[str, str]
    tones: Mapping[str, str]


def words_of(card: DeploymentCard, *, rates: Mapping[int, float]) -> Words:
    """Return a deployment's words and its engines'. rates: tokens a second, by engine."""
    key = f"d{card.pk}"
    known = [rates[engine.pk] for engine in card.engines if engine.pk in rates]
    texts = {
        f"{key}.state": card.label,
        f"{key}.replicas": f"{card.n_ready} of {card.n_replicas}",
        f"{key}.queue": _queue(card.engines),
        f"{key}.rate": _rate(sum(known) if known else None),
        f"{key}.memory": _size(sum(engine.rss_bytes for engine in card.engines)),
        f"{key}.restarts": str(max((engine.n_restarts for engine in card.engines), default=0)),
    }
    tones = {f"{key}.state": card.tone}
    for engine in card.engines:
        name = f"e{engine.pk}"
        texts |= {
            f"{name}.state": engine.label,
            f"{name}.queue": _queue((engine,)),
            f"{name}.rate": _rate(rates.get(engine.pk)),
            f"{name}.memory": _size(engine.rss_bytes),
            f"{name}.kv": f"{engine.blocks_percent} %" if engine.n_blocks_total else "-",
            f"{name}.restarts": str(engine.n_restarts),
            f"{name}.files": engine.fetch_said,
            f"{name}.error": engine.last_error if engine.tone != "good" else "",
        }
        tones[f"{name}.state"] = engine.tone
    return Words(texts=texts, tones=tones)


def watch_urls(site: AdminSite) -> list[URLPattern]:
    return [
        path(
            "deployments/deployment/<path:object_id>/watch/",
            site.admin_view(watch_part),
            kwargs={"site": site},
            name="deployment_watch",
        )
    ]


@require_safe
def watch_part(request: HttpRequest, object_id: str, *, site: AdminSite) -> HttpResponse:
    """The part of a deployment's page that its script fetches, and again for newer plots."""
    deployment = _seen(request, object_id)
    now = timezone.now()
    range_ = RANGES.get(request.GET.get("range", ""), RANGES["hour"])
    names = engine_names(deployment)
    card = deployment_card(deployment, route_names=(), now=now)
    samples = engine_samples(names, span_s=range_.span_s, since=now - range_.life)
    may_see_engines = access_in(request).may(LOG_PERMISSION)
    part = "plots" if request.GET.get("part") == "plots" else "whole"
    context: dict[str, Any] = {
        "card": card,
        "words": words_of(card, rates={}).texts,
        "crashes": engine_crashes(names, limit=N_CRASHES) if may_see_engines else (),
        "may_see_engines": may_see_engines,
        "ranges": RANGES.values(),
        "drawn": plots_of(samples, range_=range_, now=now),
    }
    response = TemplateResponse(request, f"console/watch_{part}.html", context)
    response["Cache-Control"] = "no-store"
    return response


def _seen(request: HttpRequest, object_id: str) -> "Deployment":
    """Return a deployment that this person may see; raises Http404 of any other."""
    try:
        deployment = deployment_watched(object_id)
    except NotFound:
        raise Http404 from None
    visible = deployments_visible_to(person_of(request))
    if visible is not None and deployment.pk not in visible:
        raise Http404
    return deployment


def _queue(engines: Iterable[EngineCard]) -> str:
    engines = list(engines)
    return f"{sum(e.n_running for e in engines)} / {sum(e.n_waiting for e in engines)}"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"


def _size(n_bytes: int) -> str:
    return filesizeformat(n_bytes) if n_bytes else "-"
