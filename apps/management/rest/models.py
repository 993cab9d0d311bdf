"""The catalogue: models and their versions, what is said of them, stages, two side by side."""

from typing import TYPE_CHECKING, ClassVar, Final

from django.db import transaction
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest, NotFound
from apps.core.services import row_lock
from apps.gateway.rest.operations import Operation
from apps.management.caller import Caller
from apps.management.rest.base import (
    MAY_CONFLICT,
    Ask,
    ManagementView,
    Shown,
    page_of,
)
from apps.management.tags import tag_of
from apps.management.wire import registry as wire
from apps.management.wire.common import PageQuery, given
from apps.registry.selectors import (
    model_version_named,
    model_versions_described,
    registered_models,
    verifications_passed,
    versions_compared,
)
from apps.registry.services import (
    model_version_describe,
    model_version_stage_move,
    registered_model_describe,
)
from apps.registry.types import Stage, VersionFields

if TYPE_CHECKING:
    from apps.registry.models import ModelVersion, RegisteredModel

VIEW_MODEL: Final = ("registry.view_registeredmodel", "registry.change_registeredmodel")
VIEW_VERSION: Final = ("registry.view_modelversion", "registry.change_modelversion")
_TAG: Final = "Registry"


class ManagedModelListView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="listRegisteredModels",
            summary="List the models of the catalogue",
            tag=_TAG,
            answer=wire.RegisteredModelPage,
            query=PageQuery,
        )
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)


class ManagedModelView(ManagementView):
    http_method_names = ["get", "patch"]
    operations: ClassVar = {
        "get": Operation(
            id="getRegisteredModel",
            summary="Look up a model of the catalogue",
            tag=_TAG,
            answer=wire.RegisteredModelObject,
            has_etag=True,
        ),
        "patch": Operation(
            id="updateRegisteredModel",
            summary="Describe a model",
            tag=_TAG,
            answer=wire.RegisteredModelObject,
            body=wire.ModelChange,
            has_etag=True,
            if_match=True,
            errors=MAY_CONFLICT,
        ),
    }

    async def get(self, request: Request, name: str) -> Response:
        return await self.done(request, _get, name=name)

    async def patch(self, request: Request, name: str) -> Response:
        return await self.done(request, _update, name=name)


class VersionListView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="listVersions",
            summary="List the versions of a model, the newest first",
            tag=_TAG,
            answer=wire.VersionPage,
            query=wire.VersionQuery,
        )
    }

    async def get(self, request: Request, name: str) -> Response:
        return await self.done(request, _versions, name=name)


class VersionView(ManagementView):
    http_method_names = ["get", "patch"]
    operations: ClassVar = {
        "get": Operation(
            id="getVersion",
            summary="Look up a version: manifest, lineage, figures",
            tag=_TAG,
            answer=wire.VersionDetail,
            has_etag=True,
        ),
        "patch": Operation(
            id="updateVersion",
            summary="Set what is said of a version",
            tag=_TAG,
            answer=wire.VersionDetail,
            body=wire.VersionChange,
            has_etag=True,
            if_match=True,
            errors=MAY_CONFLICT,
        ),
    }

    async def get(self, request: Request, name: str, number: str) -> Response:
        return await self.done(request, _version_get, name=name, number=number)

    async def patch(self, request: Request, name: str, number: str) -> Response:
        return await self.done(request, _version_update, name=name, number=number)


class StageView(ManagementView):
    http_method_names = ["post"]
    operations: ClassVar = {
        "post": Operation(
            id="moveVersion",
            summary="Move a version to another stage",
            tag=_TAG,
            answer=wire.VersionDetail,
            body=wire.StageBody,
            has_etag=True,
            if_match=True,
        )
    }

    async def post(self, request: Request, name: str, number: str) -> Response:
        return await self.done(request, _version_move, name=name, number=number)


class CompareView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="compareVersions",
            summary="Set two versions side by side",
            tag=_TAG,
            answer=wire.ComparisonObject,
            query=wire.CompareQuery,
        )
    }

    async def get(self, request: Request, name: str, number: str) -> Response:
        return await self.done(request, _compare, name=name, number=number)


def _list(ask: Ask) -> Shown:
    ask.caller.require(*VIEW_MODEL)
    return page_of(
        wire.RegisteredModelPage,
        registered_models(),
        ask.query,
        key="name",
        past=ask.query.after,
        show=wire.model_object,
    )


def _model(caller: Caller, name: str) -> "RegisteredModel":
    caller.require(*VIEW_MODEL)
    row = registered_models().filter(name=name).first()
    if row is None:
        raise NotFound(f"There is no model {name[:120]!r}.")
    return row


def _get(ask: Ask, *, name: str) -> Shown:
    return _model_shown(_model(ask.caller, name))


@transaction.atomic
def _update(ask: Ask, *, name: str) -> Shown:
    row = _model(ask.caller, name)
    ask.caller.require("registry.change_registeredmodel")
    ask.match(_model_tag(row_lock(row)))
    registered_model_describe(model=row, description=ask.body.description, actor=ask.caller.actor)
    return _model_shown(_model(ask.caller, name))


def _model_shown(row: "RegisteredModel") -> Shown:
    return Shown(data=wire.model_object(row), tag=_model_tag(row))


def _model_tag(row: "RegisteredModel") -> str:
    return tag_of(row.name, row.description)


def version_named(caller: Caller, text: str, *, param: str) -> "ModelVersion":
    """Return the version that a field of the body names.

    Raises:
        InvalidRequest: there is none, or none that they see; names ``param``.
    """
    row = model_version_named(text)
    if row is None or not any(caller.access.may(each) for each in VIEW_VERSION):
        raise InvalidRequest(
            f"There is no version {text[:120]!r}.", code="invalid_value", param=param
        )
    return row


def _version(caller: Caller, name: str, number: str) -> "ModelVersion":
    caller.require(*VIEW_VERSION)
    row = model_version_named(f"{name}:{number}") if ":" not in name else None
    if row is None:
        raise NotFound(f"There is no version {f'{name}:{number}'[:120]!r}.")
    return model_versions_described().get(pk=row.pk)


def _versions(ask: Ask, *, name: str) -> Shown:
    ask.caller.require(*VIEW_VERSION)
    _model_exists(name)
    rows, query = model_versions_described().filter(model__name=name), ask.query
    if query.stage is not None:
        rows = rows.filter(stage=query.stage)
    if query.tag is not None:
        rows = rows.filter(tags__name=query.tag)
    past = None
    if query.after is not None:
        last = model_version_named(query.after)
        if last is None or last.model.name != name or ":" not in query.after:
            raise NotFound(f"There is no version {query.after[:120]!r}.", param="after")
        past = last.version
    return page_of(
        wire.VersionPage, rows, query, key="-version", past=past, show=wire.version_object
    )


def _model_exists(name: str) -> None:
    if not registered_models().filter(name=name).exists():
        raise NotFound(f"There is no model {name[:120]!r}.")


def _version_get(ask: Ask, *, name: str, number: str) -> Shown:
    return _version_shown(_version(ask.caller, name, number))


@transaction.atomic
def _version_update(ask: Ask, *, name: str, number: str) -> Shown:
    row = _held(ask, name, number)
    ask.caller.require("registry.change_modelversion")
    fields = given(ask.body)
    if fields.get("parent") is not None:
        fields["parent"] = version_named(ask.caller, fields["parent"], param="parent")
    model_version_describe(
        version=row,
        actor=ask.caller.actor,
        **VersionFields(**fields),  # type: ignore[typeddict-item]
    )
    return _version_shown(_version(ask.caller, name, number))


@transaction.atomic
def _version_move(ask: Ask, *, name: str, number: str) -> Shown:
    row = _held(ask, name, number)
    model_version_stage_move(
        version=row,
        stage=Stage(ask.body.stage),
        by=ask.caller.access,
        actor=ask.caller.actor,
        reason=ask.body.reason,
    )
    return _version_shown(_version(ask.caller, name, number))


def _held(ask: Ask, name: str, number: str) -> "ModelVersion":
    """Return a version, held, if it is what the request is for."""
    row_lock(_version(ask.caller, name, number))
    row = _version(ask.caller, name, number)
    ask.match(_version_tag(row))
    return row


def _compare(ask: Ask, *, name: str, number: str) -> Shown:
    left = _version(ask.caller, name, number)
    named = version_named(ask.caller, ask.query.to, param="to")
    right = model_versions_described().get(pk=named.pk)
    return Shown(data=wire.comparison_object(left, right, versions_compared(left, right)))


def _version_shown(row: "ModelVersion") -> Shown:
    run = verifications_passed([row.pk]).get(row.pk)
    detail = wire.version_detail(row, figures={} if run is None else run.figures)
    return Shown(data=detail, tag=_version_tag(row))


def _version_tag(row: "ModelVersion") -> str:
    return tag_of(wire.version_object(row), row.model_card)
