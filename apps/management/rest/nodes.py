"""Machines that run engines, with their devices and what is free of each; to look at."""

import functools
from typing import ClassVar, Final

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.exceptions import NotFound
from apps.engines.selectors import nodes_described
from apps.gateway.rest.operations import Operation
from apps.management.rest.base import Ask, ManagementView, Shown, page_of
from apps.management.wire import nodes as wire
from apps.management.wire.common import PageQuery

VIEW: Final = "engines.view_node"
_TAG: Final = "Nodes"


class NodeListView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="listNodes",
            summary="List the machines and their devices",
            tag=_TAG,
            answer=wire.NodePage,
            query=PageQuery,
        )
    }

    async def get(self, request: Request) -> Response:
        return await self.done(request, _list)


class NodeView(ManagementView):
    http_method_names = ["get"]
    operations: ClassVar = {
        "get": Operation(
            id="getNode", summary="Look up a machine", tag=_TAG, answer=wire.NodeObject
        )
    }

    async def get(self, request: Request, name: str) -> Response:
        return await self.done(request, _get, name=name)


def _list(ask: Ask) -> Shown:
    ask.caller.require(VIEW)
    return page_of(
        wire.NodePage,
        nodes_described(),
        ask.query,
        key="name",
        past=ask.query.after,
        show=functools.partial(wire.node_object, now=timezone.now()),
    )


def _get(ask: Ask, *, name: str) -> Shown:
    ask.caller.require(VIEW)
    row = nodes_described().filter(name=name).first()
    if row is None:
        raise NotFound(f"There is no node {name[:120]!r}.")
    return Shown(data=wire.node_object(row, now=timezone.now()))
