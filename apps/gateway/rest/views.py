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
from apps.routing.types import PublicModel


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
                    _card(each, name=name)
                    for each in runtime.table.models(principal=self.principal)
                    if is_allowed(self.principal, each.name)
                    for name in (each.name, *each.aliases)
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
        model = runtime.table.model(name, principal=self.principal)
        if not is_allowed(self.principal, model.name):
            raise ModelNotFound(name)
        return Response(_card(model, name=name))


def _card(model: PublicModel, *, name: str) -> wire.ModelCard:
    """name: the one of its names that is asked about."""
    heaviest = max(model.destinations, key=lambda each: each.weight, default=None)
    return wire.ModelCard(
        id=name,
        created=int(model.created_at.timestamp()),
        owned_by=heaviest.deployment_name if heaviest is not None else "",
        max_model_len=model.context_length or None,
    )
