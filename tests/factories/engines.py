"""Machines and their devices, as an agent would report them."""

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.engines.models import Device, Node


class NodeFactory(DjangoModelFactory[Node]):
    class Meta:
        model = Node

    name = factory.Sequence(lambda n: f"node-{n}")
    n_cores = 8
    seen_at = factory.LazyFunction(timezone.now)


class DeviceFactory(DjangoModelFactory[Device]):
    class Meta:
        model = Device

    node = factory.SubFactory(NodeFactory)
    kind = Device.Kind.CPU
    index = 0
    uid = "cpu"
    name = "A processor"
    total_bytes = 16 * 2**30
    free_bytes = 12 * 2**30
    auto_dtype = "bfloat16"
