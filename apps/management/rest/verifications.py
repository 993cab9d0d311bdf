"""Verifications: asked for, watched, cancelled."""

from typing import TYPE_CHECKING, ClassVar, Final

from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import NotFound
from apps.gateway.rest.operations import Operation
from apps.management.caller import Caller
from apps.management.rest.base import Ask, ManagementView, Shown, page_of
from apps.management.rest.models import version_named
from apps.management.wire import registry as wire
from apps.registry.selectors import verification_runs
from apps.registry.services import verification_ask, verification_cancel

if TYPE_CHECKING:
    from apps.registry.models import VerificationRun

ADD: Final = "registry.add_verificationrun"
CHANGE: Final = "registry.change_verificationrun"
VIEW: Final = ("registry.view_verificationrun", CHANGE)
_TAG: Final = "Verifications"
_MOST_DIGITS: Final = 18


class VerificationListView(ManagementView):
    http_method_names = ["get", "post"]
    operations: ClassVar = {
        "get": Operation(
            id="listVerifications",
            summary="List the verifications, the newest first",
            tag=_TAG,
            answer=wire.VerificationPage,
            query=wire.VerificationQuery,
            errors=(NotFound,),
        ),
        "post": Operation(
            id="createVerification",
            summary="Have a version of a model verified",
            tag=_TAG,
            answer=wire.VerificationDetail,
            body=wire.VerificationBody,
            status=201,
        ),
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)

    async def post(self, request: Request) -> Response:
        return await self.done(request, _create)


class VerificationView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="getVerification",
            summary="Look what a verification found",
            tag=_TAG,
            answer=wire.VerificationDetail,
        )
    }

    async def get(self, request: Request, verification_id: str) -> Response:
        return await self.done(request, _get, verification_id=verification_id)


class VerificationCancelView(ManagementView):
    http_method_names = ["post"]
    operations: ClassVar = {
        "post": Operation(
            id="cancelVerification",
            summary="Cancel a verification",
            tag=_TAG,
            answer=wire.VerificationDetail,
        )
    }

    async def post(self, request: Request, verification_id: str) -> Response:
        return await self.done(request, _cancel, verification_id=verification_id)


def _found(caller: Caller, text: str, *, param: str | None = None) -> "VerificationRun":
    caller.require(*VIEW)
    row = None
    if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS:
        row = verification_runs().filter(pk=int(text)).first()
    if row is None:
        raise NotFound(f"There is no verification {text[:120]!r}.", param=param)
    return row


def _list(ask: Ask) -> Shown:
    ask.caller.require(*VIEW)
    rows, query = verification_runs(), ask.query
    if query.status is not None:
        rows = rows.filter(status=query.status)
    past = query.after and _found(ask.caller, query.after, param="after").pk
    return page_of(
        wire.VerificationPage, rows, query, key="-pk", past=past, show=wire.verification_object
    )


def _create(ask: Ask) -> Shown:
    ask.caller.require(ADD)
    version = version_named(ask.caller, ask.body.version, param="version")
    return _shown(verification_ask(version=version, actor=ask.caller.actor))


def _get(ask: Ask, *, verification_id: str) -> Shown:
    return _shown(_found(ask.caller, verification_id))


def _cancel(ask: Ask, *, verification_id: str) -> Shown:
    row = _found(ask.caller, verification_id)
    ask.caller.require(CHANGE)
    return _shown(verification_cancel(run=row, actor=ask.caller.actor))


def _shown(row: "VerificationRun") -> Shown:
    return Shown(data=wire.verification_detail(row))
