"""Catalogued models; there are no files behind them."""

import factory
from factory.django import DjangoModelFactory

from apps.registry.models import ImportJob, ModelVersion, RegisteredModel, VerificationRun


class RegisteredModelFactory(DjangoModelFactory[RegisteredModel]):
    class Meta:
        model = RegisteredModel

    name = factory.Sequence(lambda n: f"model-{n}")


class ModelVersionFactory(DjangoModelFactory[ModelVersion]):
    class Meta:
        model = ModelVersion

    model = factory.SubFactory(RegisteredModelFactory)
    version = 1
    source = "weights.gguf"
    source_sha256 = "ab" * 32
    path = factory.LazyAttribute(lambda version: f"{version.model.name}/{version.version}")
    architecture = "LlamaForCausalLM"
    n_parameters = 134_515_008
    context_length = 2048
    vocab_size = 49_152
    dtype = "bfloat16"
    license = "apache-2.0"
    size_bytes = 269_060_552
    manifest = factory.LazyFunction(dict)
    manifest_sha256 = "cd" * 32


class VerificationRunFactory(DjangoModelFactory[VerificationRun]):
    """Asked for by nobody that matters, and waiting."""

    class Meta:
        model = VerificationRun

    version = factory.SubFactory(ModelVersionFactory)
    asked_by_kind = "user"
    asked_by_id = 7
    asked_by_label = "alice"


class ImportJobFactory(DjangoModelFactory[ImportJob]):
    """One that waits for a worker."""

    class Meta:
        model = ImportJob

    job_id = factory.Sequence(lambda n: f"import-{n:032x}")
    model_name = factory.Sequence(lambda n: f"model-{n}")
    kind = "root"
    source = "/imports/weights.gguf"
    status = "queued"
    actor_kind = "user"
    actor_label = "alice"
