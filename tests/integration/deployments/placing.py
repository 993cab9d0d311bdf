"""Models and reconciliation for the tests of placement."""

from typing import Any

from apps.deployments.services import replicas_reconcile
from apps.deployments.types import Reconciled
from apps.engines.models import Device
from tests.factories import ModelVersionFactory

MIB = 2**20
# Of a model whose files are not there nothing is known but its weights: two bytes each, and what
# every process needs.
RUNTIME = 320 * MIB


def version(n_mib: int) -> Any:
    """A model of so many MiB in bfloat16."""
    return ModelVersionFactory(n_parameters=n_mib * MIB // 2)


def reconcile(device: Device, **options: Any) -> Reconciled:
    return replicas_reconcile(node_id=device.node_id, **options)
