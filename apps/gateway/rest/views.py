"""The inference API over HTTP: the models that there are."""

from typing import ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from apps.gateway.limits import is_allowed
from apps.gateway.rest import wire
from apps.gateway.rest.base import InferenceView
from apps.gateway.rest.operations import Operation
from apps.gateway.runtime import gateway_runtime
from apps.routing.exceptions import ModelNotFound
from apps.routing.types import RouteTarget


class ModelListView(InferenceView):
    operations: ClassVar = {
        "get": Operation(
            id="listModels",
            summary="List the models that can be asked",
            tag="Models",
            answer=wire.ModelList,
        )
    }

    async def get(self, request: Request) -> Response:
        runtime = gateway_runtime()
        await runtime.ready()
        return Response(
            wire.ModelList(
                data=tuple(
                    _card(each)
                    for each in runtime.table.targets(principal=self.principal)
                    if is_allowed(self.principal, each.name)
                )
            )
        )


class ModelView(InferenceView):
    operations: ClassVar = {
        "get": Operation(
            id="retrieveModel",
            summary="Describe one model",
            tag="Models",
            answer=wire.ModelCard,
        )
    }

    async def get(self, request: Request, name: str) -> Response:
        runtime = gateway_runtime()
        await runtime.ready()
        target = runtime.table.target(name, principal=self.principal)
        if not is_allowed(self.principal, name):
            raise ModelNotFound(name)
        return Response(_card(target))


def _card(target: RouteTarget) -> wire.ModelCard:
    return wire.ModelCard(
        id=target.name, created=int(target.created_at.timestamp()), owned_by=target.deployment_name
    )
