"""Placement where a machine has a GPU, and what is refused where it has none."""

import pytest
from django.core.exceptions import ValidationError

from apps.audit.types import Actor
from apps.deployments.models import Deployment
from apps.deployments.services import (
    deployment_create,
)
from apps.engines.models import Device
from tests.factories import (
    DeploymentFactory,
    DeviceFactory,
    ModelVersionFactory,
)
from tests.integration.deployments.placing import MIB, reconcile, version

pytestmark = pytest.mark.django_db


def with_gpu(device: Device) -> Device:
    """Put a GPU with as much room beside the processor."""
    found: Device = DeviceFactory(
        node=device.node, kind="cuda", uid="GPU-1", free_bytes=device.free_bytes,
        total_bytes=device.free_bytes, auto_dtype="bfloat16",
    )  # fmt: skip
    return found


def test_what_generates_runs_on_a_gpu_where_there_is_room(device: Device) -> None:
    with_gpu(device)
    DeploymentFactory(name="a-large", model_version=version(500))
    DeploymentFactory(name="b-second", model_version=version(400))
    visible = [dict(spec.environment)["CUDA_VISIBLE_DEVICES"] for spec in reconcile(device).specs]
    assert visible == ["GPU-1", ""]


def test_what_makes_embeddings_runs_on_the_processor(device: Device, actor: Actor) -> None:
    with_gpu(device)
    encoder = ModelVersionFactory(architecture="BertModel", n_parameters=MIB)
    with pytest.raises(ValidationError) as refusal:
        deployment_create(actor=actor, name="texts", model_version=encoder, device_class="cuda")
    assert set(refusal.value.message_dict) == {"device_class"}
    deployment_create(actor=actor, name="texts", model_version=encoder)
    (spec,) = reconcile(device).specs
    assert spec.environment == (("CUDA_VISIBLE_DEVICES", ""),)


def test_the_weights_may_be_int8(device: Device) -> None:
    DeploymentFactory(model_version=version(10), quantization="int8")
    (spec,) = reconcile(device).specs
    assert spec.arguments[4:6] == ("--quantization", "int8")


def test_fp8_weights_are_refused_where_there_may_be_no_gpu(actor: Actor) -> None:
    for device_class in ("auto", "cpu"):
        with pytest.raises(ValidationError) as refusal:
            deployment_create(
                actor=actor,
                name="chat",
                model_version=ModelVersionFactory(),
                device_class=device_class,
                quantization="fp8",
            )
        assert refusal.value.message_dict == {
            "quantization": ["fp8 needs a GPU: let it run on one."]
        }
    assert not Deployment.objects.exists()


def test_a_tenth_of_a_gpu_is_left_as_its_engine_leaves_it(device: Device, actor: Actor) -> None:
    """What placement promises there, an engine with the same numbers starts in."""
    gpu = with_gpu(device)
    Device.objects.filter(pk=gpu.pk).update(total_bytes=10_000 * MIB, free_bytes=10_000 * MIB)
    fields = {"name": "chat", "device_class": "cuda"}
    with pytest.raises(ValidationError, match=r"\(1,048,576 bytes\) are missing on box/GPU-1"):
        deployment_create(actor=actor, model_version=version(9_000 - 1024 + 1), **fields)
    assert not Deployment.objects.exists()
    deployment_create(actor=actor, model_version=version(9_000 - 1024), **fields)
    assert [spec.name for spec in reconcile(device).specs] == ["chat-0"]
