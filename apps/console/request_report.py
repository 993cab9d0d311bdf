"""One request's way, put together from what every room knows of it, in a bounded number of reads.
What somebody may not see of another room is a number here, without name and link."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.urls import reverse

from apps.audit.selectors import events_before
from apps.batches.selectors import batches_at
from apps.core.access import Access
from apps.core.prices import currency_text
from apps.deployments.selectors import deployment_name
from apps.deployments.types import REMOTE_VERSION_ID
from apps.engines.selectors import journal_of
from apps.feedback.selectors import events_of_request
from apps.feedback.types import Event
from apps.gateway.selectors import kept_request_of
from apps.gateway.types import KeptRequest
from apps.metering.selectors import attempts_of, meters_of
from apps.metering.types import MeterState
from apps.rbac.selectors import token_get, username_of
from apps.registry.selectors import model_version_get
from apps.routing.selectors import route_id_of
from apps.tenants.selectors import tenant_names

if TYPE_CHECKING:
    from apps.audit.models import AuditEvent
    from apps.engines.models import JournalEntry
    from apps.metering.models import UsageRecord

_EVENTS_SHOWN: Final = 10
_SAID_SHOWN: Final = 20
_OF_TENANTS: Final = {"tenants_tenant", "rbac_apitoken", "batches_batch", "feedback_metricevent"}
_SPAN: Final = 1_000  # how wide the timeline is


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """url: empty where there is no page for who looks."""

    text: str
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of the request's time. start, width: in thousandths of all of it."""

    name: str
    took_ms: float
    start: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReport:
    """token, owner, user: None where there is none. batches: those that it may belong to. engine:
    what its engine recorded, in as many parts as it was sent in. attempts: with this row, those of
    every place that the request was tried at. said: feedback and events of it."""

    record: "UsageRecord"
    attempts: "tuple[UsageRecord, ...]"
    tenant: Link
    token: Link | None
    owner: Link | None
    user: Link | None
    route: Link
    model_version: Link
    deployment: Link
    meters: tuple[MeterState, ...]
    n_meters_gone: int
    timeline: tuple[Span, ...]
    engine: "tuple[JournalEntry, ...]"
    cost: str
    prices: tuple[tuple[str, str], ...]
    kept: KeptRequest | None
    batches: tuple[Link, ...]
    events: "tuple[AuditEvent, ...]"
    said: tuple[Event, ...]


def request_report(record: "UsageRecord", *, access: Access) -> RequestReport:
    meters = tuple(meters_of(record))
    links = _Links(access, tenant_id=record.tenant_id)
    attempts = tuple(attempts_of(record))
    token, owner = _token_and_owner(record, links)
    route_id = route_id_of(record.route_name)
    tenant = tenant_names({record.tenant_id}).get(record.tenant_id, f"#{record.tenant_id}")
    return RequestReport(
        record=record,
        attempts=attempts,
        tenant=Link(text=tenant, url=links.url("tenants_tenant", record.tenant_id)),
        token=token,
        owner=owner,
        user=_person(record.user_id, links) if record.user_id else None,
        route=Link(
            text=record.route_name, url=links.url("routing_route", route_id) if route_id else ""
        ),
        model_version=_model(record, links),
        deployment=links.to(
            "deployments_deployment",
            record.deployment_id,
            name=deployment_name(record.deployment_id),
        ),
        meters=meters,
        n_meters_gone=len(set(record.meter_ids)) - len(meters),
        timeline=timeline(record),
        engine=tuple(journal_of(request_id=record.request_id, epoch=record.engine_epoch)),
        cost=currency_text(record.cost_micro),
        prices=tuple(
            (name, currency_text(micro * 1_000_000))
            for name, micro in (
                ("prompt", record.prompt_micro),
                ("cached", record.cached_micro),
                ("completion", record.completion_micro),
            )
        ),
        kept=_kept(record),
        batches=_batches(record, links),
        events=_events(record, access, route_id=route_id),
        said=_said(record, attempts, links),
    )


def timeline(record: "UsageRecord") -> tuple[Span, ...]:
    """Return the parts of a request's time, up to its end; none of one that nobody timed.

    Its row was written once an engine had its prompt: what came before that is all of its time
    less that of its row.
    """
    total_ms = record.total_ms
    if not total_ms or record.settled_at is None:
        return ()
    row_ms = (record.settled_at - record.created_at).total_seconds() * 1000
    first_ms = total_ms if record.ttft_ms is None else min(record.ttft_ms, total_ms)
    before_ms = min(max(0.0, total_ms - row_ms), first_ms)
    parts = (
        ("Let in, and its prompt prepared", 0.0, before_ms),
        ("Waiting and reading the prompt, to the first token", before_ms, first_ms),
        ("Answering", first_ms, total_ms),
    )
    return tuple(
        Span(
            name=name,
            took_ms=end - start,
            start=round(start / total_ms * _SPAN),
            width=max(1, round((end - start) / total_ms * _SPAN)),
        )
        for name, start, end in parts
        if end > start
    )


class _Links:
    """Names and pages, as far as somebody may see them."""

    def __init__(self, access: Access, *, tenant_id: int) -> None:
        self._access, self._tenant_id = access, tenant_id

    def may_see(self, page: str) -> bool:
        """A role in the tenant opens the pages of tenants' things, and no others."""
        app, _, model = page.partition("_")
        tenant_id = self._tenant_id if page in _OF_TENANTS else None
        return self._access.may(f"{app}.view_{model}", tenant_id=tenant_id)

    def url(self, page: str, pk: Any) -> str:
        return reverse(f"admin:{page}_change", args=[pk]) if self.may_see(page) else ""

    def to(self, page: str, pk: int, *, name: str | None) -> Link:
        """Link to a thing; one that is gone, and has no name, has no page."""
        if name is None or not self.may_see(page):
            return Link(text=f"#{pk}")
        return Link(text=name, url=self.url(page, pk))


def _model(record: "UsageRecord", links: _Links) -> Link:
    if record.model_version_id == REMOTE_VERSION_ID:
        return Link(text="at a remote server")
    version = model_version_get(record.model_version_id)
    name = str(version) if version else None
    return links.to("registry_modelversion", record.model_version_id, name=name)


def _token_and_owner(record: "UsageRecord", links: _Links) -> tuple[Link | None, Link | None]:
    if record.api_token_id is None:
        return None, None
    token = None
    if links.may_see("rbac_apitoken"):
        token = token_get(record.api_token_id, tenant_id=record.tenant_id)
    found = links.to("rbac_apitoken", record.api_token_id, name=str(token) if token else None)
    owner = token.owner if token else None
    if owner is None:
        return found, None
    return found, Link(text=owner.get_username(), url=links.url("rbac_user", owner.pk))


def _person(user_id: int, links: _Links) -> Link:
    name = username_of(user_id) if links.may_see("rbac_user") else None
    return links.to("rbac_user", user_id, name=name)


def _kept(record: "UsageRecord") -> KeptRequest | None:
    if record.settled_at is None:
        return None
    return kept_request_of(
        request_id=record.request_id,
        tenant_id=record.tenant_id,
        began_at=record.created_at,
        ended_at=record.settled_at,
    )


def _batches(record: "UsageRecord", links: _Links) -> tuple[Link, ...]:
    if record.door != "batch" or record.api_token_id is None:
        return ()
    found = batches_at(
        tenant_id=record.tenant_id, api_token_id=record.api_token_id, moment=record.created_at
    )
    return tuple(links.to("batches_batch", each.pk, name=str(each)) for each in found)


def _said(
    record: "UsageRecord", attempts: "tuple[UsageRecord, ...]", links: _Links
) -> tuple[Event, ...]:
    if not links.may_see("feedback_metricevent"):
        return ()
    row_ids = [each.request_id for each in attempts]
    return tuple(events_of_request(tenant_id=record.tenant_id, row_ids=row_ids, limit=_SAID_SHOWN))


def _events(
    record: "UsageRecord", access: Access, *, route_id: int | None
) -> "tuple[AuditEvent, ...]":
    return tuple(
        events_before(
            record.created_at,
            objects=list(_objects(record, route_id=route_id)),
            within=access.tenants_where("audit.view_auditevent"),
            limit=_EVENTS_SHOWN,
        )
    )


def _objects(record: "UsageRecord", *, route_id: int | None) -> Iterator[tuple[str, str]]:
    yield "tenants.Tenant", str(record.tenant_id)
    if record.api_token_id is not None:
        yield "rbac.ApiToken", str(record.api_token_id)
    if route_id is not None:
        yield "routing.Route", str(route_id)
