"""Rollouts: started, watched, approved, paused, resumed, aborted."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from django.db import transaction
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest, NotFound, PermissionDenied
from apps.core.services import row_lock
from apps.deployments.selectors import deployment_named, deployments_visible_to
from apps.gateway.rest.operations import Operation
from apps.management.caller import Caller
from apps.management.rest.base import Ask, ManagementView, Shown, page_of
from apps.management.wire import rollouts as wire
from apps.rollouts.selectors import rollout_get, rollout_report, rollouts_visible_to
from apps.rollouts.services import (
    rollout_abort,
    rollout_approve,
    rollout_pause,
    rollout_resume,
    rollout_start,
)
from apps.routing.selectors import route_named, routes_visible_to

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from apps.rollouts.models import Rollout

ADD: Final = "rollouts.add_rollout"
CHANGE: Final = "rollouts.change_rollout"
APPROVE: Final = "rollouts.approve_rollout"
VIEW: Final = "rollouts.view_rollout"
_VIEW_ROUTE: Final = "routing.view_route"
_CHANGE_ROUTE: Final = "routing.change_route"
_TAG: Final = "Rollouts"
_MOST_DIGITS: Final = 18


class RolloutListView(ManagementView):
    http_method_names = ["get", "post"]
    operations: ClassVar = {
        "get": Operation(
            id="listRollouts",
            summary="List the rollouts, the newest first",
            tag=_TAG,
            answer=wire.RolloutPage,
            query=wire.RolloutQuery,
            errors=(NotFound,),
        ),
        "post": Operation(
            id="startRollout",
            summary="Move a route's requests stepwise to another deployment",
            tag=_TAG,
            answer=wire.RolloutDetail,
            body=wire.RolloutBody,
            status=201,
            has_etag=True,
        ),
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)

    async def post(self, request: Request) -> Response:
        return await self.done(request, _start)


class RolloutView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="getRollout",
            summary="Look how a rollout goes",
            tag=_TAG,
            answer=wire.RolloutDetail,
            has_etag=True,
        )
    }

    async def get(self, request: Request, rollout_id: str) -> Response:
        return await self.done(request, _get, rollout_id=rollout_id)


class _ActView(ManagementView):
    """One that moves a rollout. permission: beside that to change its route."""

    http_method_names = ["post"]
    service: ClassVar[Callable[..., Any]]
    permission: ClassVar[str] = CHANGE

    async def post(self, request: Request, rollout_id: str) -> Response:
        return await self.done(request, self._acted, rollout_id=rollout_id)

    @transaction.atomic
    def _acted(self, ask: Ask, *, rollout_id: str) -> Shown:
        row = _found(ask.caller, rollout_id)
        ask.caller.require(self.permission)
        if row.route is not None:
            ask.caller.require_of(row.route, _CHANGE_ROUTE)
        row = row_lock(row)
        ask.match(_tag(row))
        reason = {} if ask.body is None else {"reason": ask.body.reason}
        type(self).service(
            rollout=row, seen=row.version, actor=ask.caller.actor, by=ask.caller.user, **reason
        )
        return _shown(ask.caller, row.pk)


def _act(id: str, summary: str, *, body: Any = None) -> dict[str, Operation]:
    operation = Operation(
        id=id,
        summary=summary,
        tag=_TAG,
        answer=wire.RolloutDetail,
        body=body,
        has_etag=True,
        if_match=True,
    )
    return {"post": operation}


class RolloutApproveView(_ActView):
    operations: ClassVar = _act("approveRollout", "Let a rollout begin, or take its next step")
    service = staticmethod(rollout_approve)
    permission = APPROVE


class RolloutPauseView(_ActView):
    operations: ClassVar = _act("pauseRollout", "Let a rollout take no further step")
    service = staticmethod(rollout_pause)


class RolloutResumeView(_ActView):
    operations: ClassVar = _act("resumeRollout", "Let a rollout go on")
    service = staticmethod(rollout_resume)


class RolloutAbortView(_ActView):
    operations: ClassVar = _act(
        "abortRollout", "Lead the route where it led before", body=wire.AbortBody
    )
    service = staticmethod(rollout_abort)


def _visible(caller: Caller) -> "QuerySet[Rollout]":
    """Return the rollouts of the routes that they see; raises PermissionDenied where that is none
    ever."""
    caller.require(VIEW)
    visible = routes_visible_to(caller.user)
    if visible is not None and not visible:
        raise PermissionDenied(f"For this you need {_VIEW_ROUTE}.")
    return rollouts_visible_to(caller.user)


def _found(caller: Caller, text: str, *, param: str | None = None) -> "Rollout":
    rows, row = _visible(caller), None
    if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS:
        row = rows.filter(pk=int(text)).first()
    if row is None:
        raise NotFound(f"There is no rollout {text[:120]!r}.", param=param)
    return row


def _list(ask: Ask) -> Shown:
    rows, query = _visible(ask.caller), ask.query
    if query.route is not None:
        rows = rows.filter(route_name=query.route)
    if query.state is not None:
        rows = rows.filter(state=query.state)
    past = query.after and _found(ask.caller, query.after, param="after").pk
    return page_of(wire.RolloutPage, rows, query, key="-pk", past=past, show=wire.rollout_object)


def _start(ask: Ask) -> Shown:
    body, caller = ask.body, ask.caller
    caller.require(ADD)
    visible = routes_visible_to(caller.user)
    route = route_named(body.route)
    if route is None or not (visible is None or route.pk in visible):
        raise _unknown("route", body.route)
    caller.require_of(route, _CHANGE_ROUTE)
    rollout = rollout_start(
        route=route,
        candidate=_deployment(caller, body.candidate, param="candidate"),
        baseline=body.baseline and _deployment(caller, body.baseline, param="baseline"),
        steps=wire.step_specs(body),
        guardrails=wire.guardrail_specs(body),
        approval=body.approval,
        needs_second_person=body.needs_second_person,
        alpha=body.alpha,
        actor=caller.actor,
        by=caller.user,
    )
    return _shown(caller, rollout.pk)


def _deployment(caller: Caller, name: str, *, param: str) -> Any:
    visible = deployments_visible_to(caller.user)
    found = deployment_named(name)
    if found is None or not (visible is None or found.pk in visible):
        raise _unknown("deployment", name, param=param)
    return found


def _unknown(kind: str, name: str, *, param: str | None = None) -> InvalidRequest:
    return InvalidRequest(
        f"There is no {kind} {name[:120]!r}.", code="invalid_value", param=param or kind
    )


def _get(ask: Ask, *, rollout_id: str) -> Shown:
    return _shown(ask.caller, _found(ask.caller, rollout_id).pk)


def _shown(caller: Caller, pk: int) -> Shown:
    row, report = rollout_get(pk), rollout_report(pk, by=caller.user)
    assert row is not None and report is not None
    return Shown(data=wire.rollout_detail(row, report), tag=_tag(row))


def _tag(row: "Rollout") -> str:
    return f'"{row.version}"'
