"""Experiments: made, started, watched, ended. What changes traffic needs the permission of its
route too, as in the admin."""

from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from django.db import transaction
from django.http import HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import InvalidRequest, NotFound
from apps.core.services import row_lock
from apps.deployments.selectors import deployment_named, deployments_visible_to
from apps.experiments.selectors import (
    UnknownMetric,
    experiment_named,
    experiment_results,
    experiments_described,
    layer_named,
    metric_of,
    results_csv,
)
from apps.experiments.services import (
    experiment_create,
    experiment_promote,
    experiment_start,
    experiment_stop,
    variant_weights_set,
)
from apps.experiments.types import MetricSpec, VariantSpec
from apps.gateway.rest.operations import Operation
from apps.management.caller import Caller
from apps.management.rest.base import Ask, ManagementView, Shown, page_of
from apps.management.wire import experiments as wire
from apps.management.wire.common import PageQuery
from apps.routing.selectors import route_named, routes_visible_to

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.experiments.models import Experiment, Variant
    from apps.routing.models import Route

VIEW: Final = "experiments.view_experiment"
ADD: Final = "experiments.add_experiment"
CHANGE: Final = "experiments.change_experiment"
CHANGE_ROUTE: Final = "routing.change_route"
ROLL_OUT: Final = "rollouts.add_rollout"
CSV: Final = "text/csv"
_TAG: Final = "Experiments"
T = TypeVar("T")


class ExperimentListView(ManagementView):
    http_method_names = ["get", "post"]
    operations: ClassVar = {
        "get": Operation(
            id="listExperiments",
            summary="List experiments",
            tag=_TAG,
            answer=wire.ExperimentPage,
            query=PageQuery,
        ),
        "post": Operation(
            id="createExperiment",
            summary="Make a draft of an experiment",
            tag=_TAG,
            answer=wire.ExperimentObject,
            body=wire.ExperimentBody,
            status=201,
            has_etag=True,
        ),
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)

    async def post(self, request: Request) -> Response:
        return await self.done(request, _create)


class ExperimentView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="getExperiment",
            summary="Look up an experiment",
            tag=_TAG,
            answer=wire.ExperimentObject,
            has_etag=True,
        )
    }

    async def get(self, request: Request, name: str) -> Response:
        return await self.done(request, _get, name=name)


class ResultsView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="getExperimentResults",
            summary="What came of an experiment until now",
            tag=_TAG,
            answer=wire.ResultsObject,
        )
    }

    async def get(self, request: Request, name: str) -> Response:
        return await self.done(request, _results, name=name)


class ResultsFileView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="getExperimentResultsFile",
            summary="The same as a file: a line for each variant in each metric",
            tag=_TAG,
            answer=None,
            answer_type=CSV,
        )
    }

    async def get(self, request: Request, name: str) -> HttpResponse:
        response = await self.done(request, _results_file, name=name)
        return HttpResponse(response.data, content_type=f"{CSV}; charset=utf-8")


def _act(id: str, summary: str, body: Any = None, answer: Any = wire.ExperimentObject) -> Operation:
    return Operation(
        id=id,
        summary=summary,
        tag=_TAG,
        answer=answer,
        body=body,
        has_etag=True,
        if_match=True,
    )


class StartView(ManagementView):
    http_method_names = ["post"]
    operations: ClassVar = {"post": _act("startExperiment", "Start an experiment")}

    async def post(self, request: Request, name: str) -> Response:
        return await self.done(request, _start, name=name)


class StopView(ManagementView):
    http_method_names = ["post"]
    operations: ClassVar = {
        "post": _act(
            "stopExperiment", "End an experiment: its route leads as before", wire.StopBody
        )
    }

    async def post(self, request: Request, name: str) -> Response:
        return await self.done(request, _stop, name=name)


class WeightsView(ManagementView):
    http_method_names = ["post"]
    operations: ClassVar = {
        "post": _act("setExperimentWeights", "Change the shares of variants", wire.WeightsBody)
    }

    async def post(self, request: Request, name: str) -> Response:
        return await self.done(request, _weights_set, name=name)


class PromoteView(ManagementView):
    http_method_names = ["post"]
    operations: ClassVar = {
        "post": _act(
            "promoteVariant",
            "End an experiment with a winner, and roll that out",
            wire.PromoteBody,
            wire.PromotedObject,
        )
    }

    async def post(self, request: Request, name: str) -> Response:
        return await self.done(request, _promote, name=name)


def _visible(caller: Caller, name: str) -> "Experiment":
    caller.require(VIEW)
    row = experiment_named(name)
    if row is None:
        raise NotFound(f"There is no experiment {name[:60]!r}.")
    return row


def _held(ask: Ask, name: str, *, moves_traffic: bool = True) -> "Experiment":
    """Return an experiment that they may change, held, if it is what the request is for."""
    row = _visible(ask.caller, name)
    ask.caller.require(CHANGE)
    if moves_traffic:
        ask.caller.require_of(row.route, CHANGE_ROUTE)
    row = row_lock(row)
    ask.match(_tag(row))
    return row


def _tag(row: "Experiment") -> str:
    return f'"{row.version}"'


def _shown(row: "Experiment") -> Shown:
    found = experiments_described().get(pk=row.pk)
    return Shown(data=wire.experiment_object(found), tag=_tag(found))


def _list(ask: Ask) -> Shown:
    ask.caller.require(VIEW)
    return page_of(
        wire.ExperimentPage,
        experiments_described(),
        ask.query,
        key="name",
        past=ask.query.after,
        show=wire.experiment_object,
    )


def _get(ask: Ask, *, name: str) -> Shown:
    return _shown(_visible(ask.caller, name))


def _results(ask: Ask, *, name: str) -> Shown:
    return Shown(data=wire.results_object(experiment_results(_visible(ask.caller, name))))


def _results_file(ask: Ask, *, name: str) -> Shown:
    return Shown(data=results_csv(experiment_results(_visible(ask.caller, name))))


@transaction.atomic
def _create(ask: Ask) -> Shown:
    ask.caller.require(ADD)
    body: wire.ExperimentBody = ask.body
    fields = {
        name: getattr(body, name)
        for name in (
            "name", "hypothesis", "share_percent", "subject", "eligibility", "alpha", "power",
            "min_effect", "planned_units", "pre_period_days",
        )
    }  # fmt: skip
    if body.layer is not None:
        fields["layer"] = _there(layer_named(body.layer), "layer", body.layer, param="layer")
    row = experiment_create(
        actor=ask.caller.actor,
        route=_route(ask, body.route, param="route"),
        variants=[_variant_spec(ask, each, place) for place, each in enumerate(body.variants)],
        metrics=[_metric_spec(each, place) for place, each in enumerate(body.metrics)],
        **fields,
    )
    return _shown(row)


@transaction.atomic
def _start(ask: Ask, *, name: str) -> Shown:
    row = _held(ask, name)
    return _shown(experiment_start(experiment=row, seen=row.version, actor=ask.caller.actor))


@transaction.atomic
def _stop(ask: Ask, *, name: str) -> Shown:
    """To end it is not held back by what somebody may do with its route."""
    row, body = _held(ask, name, moves_traffic=False), ask.body
    winner = None if body.winner is None else _variant(row, body.winner, param="winner")
    return _shown(
        experiment_stop(
            experiment=row,
            seen=row.version,
            actor=ask.caller.actor,
            because=body.because,
            winner=winner,
        )
    )


@transaction.atomic
def _weights_set(ask: Ask, *, name: str) -> Shown:
    row = _held(ask, name)
    return _shown(
        variant_weights_set(
            experiment=row, seen=row.version, actor=ask.caller.actor, weights=ask.body.weights
        )
    )


@transaction.atomic
def _promote(ask: Ask, *, name: str) -> Shown:
    row, body = _held(ask, name), ask.body
    ask.caller.require(ROLL_OUT)
    done = experiment_promote(
        experiment=row,
        variant=_variant(row, body.variant, param="variant"),
        seen=row.version,
        actor=ask.caller.actor,
        by=ask.caller.user,
        because=body.because,
    )
    shown = _shown(row)
    rollout = None if done.rollout is None else done.rollout.pk
    return Shown(data=wire.PromotedObject(experiment=shown.data, rollout=rollout), tag=shown.tag)


def _variant_spec(ask: Ask, body: wire.VariantBody, place: int) -> VariantSpec:
    at = f"variants[{place}]"
    return VariantSpec(
        name=body.name,
        weight=body.weight,
        is_control=body.is_control,
        deployment=None
        if body.deployment is None
        else _deployment(ask, body.deployment, param=f"{at}.deployment"),
        other_route=None
        if body.other_route is None
        else _route(ask, body.other_route, param=f"{at}.other_route"),
        parameters=body.parameters,
        prompt_template=body.prompt_template,
    )


def _metric_spec(body: wire.MetricBody, place: int) -> MetricSpec:
    try:
        usual = metric_of(body.metric).better
    except UnknownMetric as error:
        at = f"metrics[{place}].metric"
        raise InvalidRequest(str(error), code="invalid_value", param=at) from None
    return MetricSpec(
        metric=body.metric,
        role=body.role,
        better=body.better or usual,
        tolerance=body.tolerance,
    )


def _variant(row: "Experiment", name: str, *, param: str) -> "Variant":
    found = next((each for each in row.variants.all() if each.name == name), None)
    return _there(found, "variant", name, param=param)


def _route(ask: Ask, name: str, *, param: str) -> "Route":
    visible = routes_visible_to(ask.caller.user)
    found = route_named(name)
    is_seen = found is not None and (visible is None or found.pk in visible)
    return _there(found if is_seen else None, "route", name, param=param)


def _deployment(ask: Ask, name: str, *, param: str) -> "Deployment":
    visible = deployments_visible_to(ask.caller.user)
    found = deployment_named(name)
    is_seen = found is not None and (visible is None or found.pk in visible)
    return _there(found if is_seen else None, "deployment", name, param=param)


def _there(found: T | None, noun: str, name: str, *, param: str) -> T:
    """Return what is there and may be seen; raises InvalidRequest."""
    if found is None:
        raise InvalidRequest(
            f"There is no {noun} {name[:120]!r}.", code="invalid_value", param=param
        )
    return found
