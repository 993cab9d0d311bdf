"""Deployments: what should run and what does; made, scaled, started, stopped and removed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from django.db import transaction
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest, NotFound, PermissionDenied
from apps.core.services import row_lock
from apps.deployments.selectors import (
    deployments_described,
    deployments_visible_to,
    remote_server_named,
)
from apps.deployments.services import (
    deployment_create,
    deployment_delete,
    deployment_drain,
    deployment_restart,
    deployment_start,
    deployment_stop,
    deployment_update,
)
from apps.deployments.types import DeploymentFields
from apps.gateway.rest.operations import Operation
from apps.management.caller import Caller
from apps.management.rest.base import MAY_CONFLICT, Ask, ManagementView, Shown, page_of
from apps.management.tags import tag_of
from apps.management.wire import deployments as wire
from apps.management.wire.common import Gone, PageQuery, given
from apps.registry.selectors import model_version_named

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from apps.deployments.models import Deployment

VIEW: Final = "deployments.view_deployment"
CHANGE: Final = "deployments.change_deployment"
_TAG: Final = "Deployments"


class DeploymentListView(ManagementView):
    http_method_names = ["get", "post"]
    operations: ClassVar = {
        "get": Operation(
            id="listDeployments",
            summary="List what should run, and what does",
            tag=_TAG,
            answer=wire.DeploymentPage,
            query=PageQuery,
        ),
        "post": Operation(
            id="createDeployment",
            summary="Deploy a version of a model",
            tag=_TAG,
            answer=wire.DeploymentObject,
            body=wire.DeploymentBody,
            status=201,
            has_etag=True,
        ),
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)

    async def post(self, request: Request) -> Response:
        return await self.done(request, _create)


class DeploymentView(ManagementView):
    http_method_names = ["get", "patch", "delete"]
    operations: ClassVar = {
        "get": Operation(
            id="getDeployment",
            summary="Look up a deployment",
            tag=_TAG,
            answer=wire.DeploymentObject,
            has_etag=True,
        ),
        "patch": Operation(
            id="updateDeployment",
            summary="Scale a deployment, or set it otherwise",
            tag=_TAG,
            answer=wire.DeploymentObject,
            body=wire.DeploymentChange,
            has_etag=True,
            if_match=True,
            errors=MAY_CONFLICT,
        ),
        "delete": Operation(
            id="deleteDeployment",
            summary="Remove a deployment",
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


class _TellView(ManagementView):
    """Tells a deployment to do something; what comes of it is seen later."""

    http_method_names = ["post"]
    service: ClassVar[Callable[..., Any]]

    async def post(self, request: Request, name: str) -> Response:
        service = type(self).service

        def tell(ask: Ask, *, name: str) -> Shown:
            row = _changeable(ask.caller, name)
            return _shown(service(deployment=row, actor=ask.caller.actor))

        return await self.done(request, tell, name=name)


def _told(verb: str, summary: str) -> dict[str, Operation]:
    return {
        "post": Operation(
            id=f"{verb}Deployment",
            summary=summary,
            tag=_TAG,
            answer=wire.DeploymentObject,
            has_etag=True,
        )
    }


class StartView(_TellView):
    operations: ClassVar = _told("start", "Have a deployment run")
    service = staticmethod(deployment_start)


class DrainView(_TellView):
    operations: ClassVar = _told("drain", "Let a deployment's engines finish, then stop")
    service = staticmethod(deployment_drain)


class StopView(_TellView):
    operations: ClassVar = _told("stop", "Stop a deployment's engines")
    service = staticmethod(deployment_stop)


class RestartView(_TellView):
    operations: ClassVar = _told("restart", "Replace a deployment's engines by new ones")
    service = staticmethod(deployment_restart)


def visible_deployments(caller: Caller) -> "QuerySet[Deployment]":
    """Return what they may see. Raises PermissionDenied where that can be nothing."""
    visible = deployments_visible_to(caller.user)
    if visible is None:
        return deployments_described()
    if not visible:
        raise PermissionDenied(f"For this you need {VIEW}.")
    return deployments_described().filter(pk__in=visible)


def _visible(caller: Caller, name: str) -> "Deployment":
    row = visible_deployments(caller).filter(name=name).first()
    if row is None:
        raise NotFound(f"There is no deployment {name[:120]!r}.")
    return row


def _changeable(caller: Caller, name: str) -> "Deployment":
    row = _visible(caller, name)
    caller.require_of(row, CHANGE)
    return row


def _list(ask: Ask) -> Shown:
    return page_of(
        wire.DeploymentPage,
        visible_deployments(ask.caller),
        ask.query,
        key="name",
        past=ask.query.after,
        show=wire.deployment_object,
    )


def _get(ask: Ask, *, name: str) -> Shown:
    return _shown(_visible(ask.caller, name))


def _create(ask: Ask) -> Shown:
    ask.caller.require("deployments.add_deployment")
    fields = _fields(ask, current=None)
    return _shown(deployment_create(actor=ask.caller.actor, **fields))


@transaction.atomic
def _update(ask: Ask, *, name: str) -> Shown:
    row = row_lock(_changeable(ask.caller, name))
    ask.match(_tag(row))
    fields = _fields(ask, current=row)
    return _shown(deployment_update(deployment=row, actor=ask.caller.actor, **fields))


@transaction.atomic
def _delete(ask: Ask, *, name: str) -> Shown:
    row = _visible(ask.caller, name)
    ask.caller.require("deployments.delete_deployment")
    ask.match(_tag(row_lock(row)))
    deployment_delete(deployment=row, actor=ask.caller.actor)
    return Shown(data=Gone(id=name, object="deployment"))


def _shown(row: "Deployment") -> Shown:
    """Answer with a deployment as it is after what was done."""
    found = wire.deployment_object(deployments_described().get(pk=row.pk))
    return Shown(data=found, tag=tag_of(found.id, found.desired))


def _tag(row: "Deployment") -> str:
    return tag_of(row.name, wire.desired(row))


def _fields(ask: Ask, *, current: "Deployment | None") -> DeploymentFields:
    """Return the columns that a body sets, what it names looked up."""
    fields = given(ask.body)
    remote = sorted(wire.REMOTE_FIELDS & fields.keys())
    if remote:  # whose key a deployment uses is not for whoever was given a deployment
        ask.caller.require("deployments.view_remoteserver", param=remote[0])
    for name in ("model_version", "draft_version"):
        if fields.get(name) is not None:
            is_now = None if current is None else getattr(current, name)
            fields[name] = _version(ask.caller, fields[name], field=name, is_now=is_now)
    if fields.get("remote") is not None:
        server = remote_server_named(fields["remote"])
        if server is None:
            raise _unknown("remote", f"There is no remote server {fields['remote']!r}.")
        fields["remote"] = server
    return cast(DeploymentFields, fields)


def _version(caller: Caller, text: str, *, field: str, is_now: Any) -> Any:
    """Return a version that they see, or that stands in the field now."""
    version = model_version_named(text)
    may_see = version == is_now or caller.access.may("registry.view_modelversion")
    if version is None or not may_see:
        raise _unknown(field, f"There is no version {text!r}.")
    return version


def _unknown(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_value", param=field)
