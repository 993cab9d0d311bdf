"""Judges: models that score answers of experiments by a stated rubric. Whose token one asks with is
for those to say who may issue tokens for that tenant."""

from typing import TYPE_CHECKING, Any, ClassVar, Final

from django.db import transaction
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest, NotFound
from apps.core.services import row_lock
from apps.gateway.rest.operations import Operation
from apps.judging.selectors import judge_named, judges_described, samples_waiting
from apps.judging.services import judge_create, judge_delete, judge_update
from apps.management.caller import Caller
from apps.management.rest.base import MAY_CONFLICT, Ask, ManagementView, Shown, page_of
from apps.management.wire import judges as wire
from apps.management.wire.common import Gone, PageQuery, given
from apps.rbac.selectors import token_among
from apps.rbac.types import ADD_TOKEN
from apps.routing.selectors import route_named, routes_visible_to

if TYPE_CHECKING:
    from apps.judging.models import Judge

VIEW: Final = "judging.view_judge"
ADD: Final = "judging.add_judge"
CHANGE: Final = "judging.change_judge"
DELETE: Final = "judging.delete_judge"
_TAG: Final = "Experiments"


class JudgeListView(ManagementView):
    http_method_names = ["get", "post"]
    operations: ClassVar = {
        "get": Operation(
            id="listJudges",
            summary="List the models that score answers",
            tag=_TAG,
            answer=wire.JudgePage,
            query=PageQuery,
        ),
        "post": Operation(
            id="createJudge",
            summary="Make a judge",
            tag=_TAG,
            answer=wire.JudgeObject,
            body=wire.JudgeBody,
            status=201,
            has_etag=True,
        ),
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)

    async def post(self, request: Request) -> Response:
        return await self.done(request, _create)


class JudgeView(ManagementView):
    http_method_names = ["get", "patch", "delete"]
    operations: ClassVar = {
        "get": Operation(
            id="getJudge",
            summary="Look up a judge, with how far it is",
            tag=_TAG,
            answer=wire.JudgeObject,
            has_etag=True,
        ),
        "patch": Operation(
            id="updateJudge",
            summary="Set a part of a judge",
            tag=_TAG,
            answer=wire.JudgeObject,
            body=wire.JudgeChange,
            has_etag=True,
            if_match=True,
            errors=MAY_CONFLICT,
        ),
        "delete": Operation(
            id="deleteJudge",
            summary="Remove a judge and the answers that wait for it",
            tag=_TAG,
            answer=Gone,
            if_match=True,
            errors=MAY_CONFLICT,
        ),
    }

    async def get(self, request: Request, name: str) -> Response:
        return await self.done(request, _get, name=name)

    async def patch(self, request: Request, name: str) -> Response:
        return await self.done(request, _update, name=name)

    async def delete(self, request: Request, name: str) -> Response:
        return await self.done(request, _delete, name=name)


def _visible(caller: Caller, name: str) -> "Judge":
    caller.require(VIEW)
    row = judge_named(name)
    if row is None:
        raise NotFound(f"There is no judge {name[:60]!r}.")
    return row


def _held(ask: Ask, name: str, permission: str) -> "Judge":
    """Return a judge that they may change, held, if it is what the request is for."""
    row = _visible(ask.caller, name)
    ask.caller.require(permission)
    row = row_lock(row)
    ask.match(_tag(row))
    return row


def _tag(row: "Judge") -> str:
    return f'"{row.version}"'


def _shown(row: "Judge") -> Shown:
    found = judges_described().get(pk=row.pk)
    return Shown(data=wire.judge_object(found, samples_waiting([row.pk])), tag=_tag(found))


def _list(ask: Ask) -> Shown:
    ask.caller.require(VIEW)
    waiting = samples_waiting(None)
    return page_of(
        wire.JudgePage,
        judges_described(),
        ask.query,
        key="name",
        past=ask.query.after,
        show=lambda row: wire.judge_object(row, waiting),
    )


def _get(ask: Ask, *, name: str) -> Shown:
    return _shown(_visible(ask.caller, name))


@transaction.atomic
def _create(ask: Ask) -> Shown:
    ask.caller.require(ADD)
    caller, fields = ask.caller, _fields(ask, row=None)
    return _shown(judge_create(actor=caller.actor, by=caller.user, **fields))


@transaction.atomic
def _update(ask: Ask, *, name: str) -> Shown:
    row = _held(ask, name, CHANGE)
    caller = ask.caller
    return _shown(
        judge_update(
            judge=row,
            seen=row.version,
            actor=caller.actor,
            by=caller.user,
            **_fields(ask, row=row),
        )
    )


@transaction.atomic
def _delete(ask: Ask, *, name: str) -> Shown:
    row = _held(ask, name, DELETE)
    judge_delete(judge=row, seen=row.version, actor=ask.caller.actor)
    return Shown(data=Gone(id=name, object="judge"))


def _fields(ask: Ask, *, row: "Judge | None") -> dict[str, Any]:
    """Return what a body sets, what it names looked up: a route that they see, or that it asks now;
    a token of a tenant for which they may issue some, or the one that it has."""
    fields = given(ask.body)
    if "route" in fields:
        name, visible = fields["route"], routes_visible_to(ask.caller.user)
        route = route_named(name)
        chosen = row is not None and route is not None and route.pk == row.route_id
        if route is None or not (visible is None or chosen or route.pk in visible):
            raise _nothing_like("route", name, param="route")
        fields["route"] = route
    if (number := fields.get("api_token")) is not None:
        if row is not None and number == row.api_token_id:
            del fields["api_token"]
            return fields
        token = token_among(ask.caller.access.tenants_where(ADD_TOKEN), token_id=number)
        if token is None:
            raise _nothing_like("API token", number, param="api_token")
        fields["api_token"] = token
    return fields


def _nothing_like(noun: str, said: object, *, param: str) -> InvalidRequest:
    return InvalidRequest(f"There is no {noun} {said!r:.130}.", code="invalid_value", param=param)
