"""Deployments with replicas and the engine processes behind them, as rows only."""

from typing import Any

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.core.sealing import seal
from apps.deployments.models import Deployment, RemoteServer, Replica
from apps.engines.models import EngineProcess
from apps.engines.types import REMOTE_KEY_PURPOSE
from tests.factories.registry import ModelVersionFactory


class RemoteServerFactory(DjangoModelFactory[RemoteServer]):
    """``api_key`` is sealed, as a service would."""

    class Meta:
        model = RemoteServer
        exclude = ("api_key",)

    name = factory.Sequence(lambda n: f"remote-{n}")
    base_url = "https://models.example.com/v1"
    api_key = "sk-remote-secret"
    api_key_sealed = factory.LazyAttribute(
        lambda server: seal(server.api_key.encode(), purpose=REMOTE_KEY_PURPOSE)
    )


class DeploymentFactory(DjangoModelFactory[Deployment]):
    class Meta:
        model = Deployment

    name = factory.Sequence(lambda n: f"deployment-{n}")
    model_version = factory.SubFactory(ModelVersionFactory)
    n_replicas = 1
    min_replicas = factory.SelfAttribute("n_replicas")
    max_replicas = factory.SelfAttribute("n_replicas")

    class Params:
        elsewhere = factory.Trait(
            model_version=None,
            remote=factory.SubFactory(RemoteServerFactory),
            remote_model="their-model",
            max_model_len=4096,
        )


class EngineProcessFactory(DjangoModelFactory[EngineProcess]):
    class Meta:
        model = EngineProcess

    class Params:
        ready = factory.Trait(
            state=EngineProcess.State.READY,
            pid=4242,
            socket_path=factory.LazyAttribute(lambda engine: f"/run/{engine.name}.sock"),
            started_at=factory.LazyFunction(timezone.now),
            ready_at=factory.LazyFunction(timezone.now),
            last_pong_at=factory.LazyFunction(timezone.now),
            ping_ms=0.8,
        )

    name = factory.Sequence(lambda n: f"engine-{n}")
    epoch = 1


class ReplicaFactory(DjangoModelFactory[Replica]):
    class Meta:
        model = Replica
        skip_postgeneration_save = True

    deployment = factory.SubFactory(DeploymentFactory)
    index = factory.Sequence(int)
    engine_process = factory.SubFactory(EngineProcessFactory, ready=True)

    @factory.post_generation  # type: ignore[untyped-decorator]
    def devices(self, create: bool, extracted: Any, **options: Any) -> None:
        if extracted:
            self.devices.set(extracted)
