"""How a deployment's engine stores keys and values, guesses and attends: what is refused and by
which field, and what it claims. Who sets it is in test_cache_guesses_attention_doors.py."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from apps.audit.types import Actor
from apps.deployments.engine_options import wrong_options
from apps.deployments.models import Deployment, Replica
from apps.deployments.needs import replica_estimate
from apps.deployments.placing import needs_text
from apps.deployments.services import deployment_create, deployment_update
from apps.engines.models import Device
from apps.registry.models import ModelVersion
from engine_service.__main__ import parse_options
from engine_service.backends.nanovllm.loading import _settled
from engine_service.config import EngineConfig, ModelConfig
from engine_service.errors import ModelError
from engine_service.kernels.libraries.flash_attention import FlashAttention3, FlashAttention4
from engine_service.kernels.paged_attention import AttentionShape, UnfitError
from engine_service.models.shard import Shard
from engine_service.runner.device_choice import gpu_dtype
from engine_service.runner.device_plan import DevicePlan
from engine_service.runner.draft_loading import _room
from engine_service.runner.kv_disk import TAG_BYTES
from engine_service.runner.loading import load
from tests.attention_libraries import flash_attention_3, flash_attention_4, install
from tests.factories import DeploymentFactory, RemoteServerFactory
from tests.integration.deployments.guessing import WORDS, draft, small, target
from tests.integration.deployments.machine import (
    BLOCK,
    MIB,
    SLEEP,
    TIERS,
    TWO,
    machine,
    reconcile,
    shaped,
)
from tests.integration.deployments.test_engine_options import model_config, nothing_changed
from tests.models import random_model_dir

__all__ = ["draft", "machine", "target"]  # fixtures

pytestmark = pytest.mark.django_db

HOPPER = (9, 0)
FP8: dict[str, Any] = {"device_class": "cuda", "kv_cache_dtype": "fp8"}
FLASH: dict[str, Any] = {"device_class": "cuda", "attention": "flash-attn"}
QWEN3: dict[str, Any] = {"architecture": "Qwen3ForCausalLM", "vocabulary_sha256": WORDS}
ODD_HEADS = {"n_heads": 8, "n_kv_heads": 4, "head_dim": 12}
OPTIONS: tuple[dict[str, Any], ...] = (
    {"kv_cache_dtype": "fp8"},
    {"speculation": "off"},
    {"speculation": "ngram"},
    {"attention": "triton"},
    {"attention": "flash-attn"},
    {"attention": "flashinfer"},
)


# -- what is refused, by field ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype", "not a valid choice"),
        ({**FP8, "device_class": "auto"}, "kv_cache_dtype", "needs a GPU"),
        ({**FP8, "device_class": "cpu"}, "kv_cache_dtype", "needs a GPU"),
        ({**FP8, **TWO, "device_class": "cpu"}, "kv_cache_dtype", "needs a GPU"),
        ({"speculation": "on"}, "speculation", "not a valid choice"),
        ({**FLASH, "attention": "xformers"}, "attention", "not a valid choice"),
        ({"attention": "triton"}, "attention", "needs a GPU"),
        ({**FLASH, "device_class": "cpu"}, "attention", "needs a GPU"),
        ({"attention": "flashinfer", **TWO, "device_class": "cpu"}, "attention", "needs a GPU"),
        ({**FLASH, **FP8}, "attention", "does not read keys and values in fp8"),
        ({**FLASH, "dtype": "float32"}, "attention", "16 bits"),
        ({**FP8, **TIERS, "host_kv_cache_bytes": BLOCK // 2 - 1}, "host_kv_cache_bytes", "block"),
    ],
)
def test_what_an_engine_would_refuse_is_not_saved(
    fields: dict[str, Any], param: str, said: str, actor: Actor
) -> None:
    with pytest.raises(ValidationError) as refusal:
        deployment_create(actor=actor, name="chat", model_version=shaped(), **fields)
    assert set(refusal.value.message_dict) == {param}
    assert said in refusal.value.messages[0]
    nothing_changed()


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_other_engines_and_remote_servers_refuse_each_by_its_name(
    option: dict[str, Any], actor: Actor
) -> None:
    qwen3 = shaped(architecture="Qwen3ForCausalLM")
    far = {"remote": RemoteServerFactory(), "remote_model": "big", "max_model_len": 4096}
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model_version": qwen3, "backend": "nanovllm", "device_class": "cuda"}, "nano-vllm does"),
        ({"model_version": shaped(architecture="BertModel")}, "An embedding model does not"),
        (far, "A remote server sees to that itself."),
    )
    for n, (fields, said) in enumerate(cases):
        with pytest.raises(ValidationError) as refusal:
            deployment_create(actor=actor, name="chat", **fields, **option)
        assert set(refusal.value.message_dict) == set(option)
        assert refusal.value.messages[0].startswith(said)
        nothing_changed()
        with transaction.atomic():  # as it is right without
            deployment_create(actor=actor, name=f"right-{n}", **fields)
            transaction.set_rollback(True)


def test_guesses_come_from_one_thing(
    target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    for word in ("off", "ngram"):
        with pytest.raises(ValidationError) as refusal:
            deployment_create(
                actor=actor, name="chat", model_version=target, draft_version=draft,
                speculation=word,
            )  # fmt: skip
        assert set(refusal.value.message_dict) == {"speculation"}
        nothing_changed()
    DeploymentFactory(model_version=target, draft_version=draft)
    rows = Deployment.objects.all()
    with pytest.raises(IntegrityError), transaction.atomic():
        rows.update(speculation="off")
    assert rows.get().speculation == "auto"
    rows.update(speculation="off", draft_version=None)


def test_heads_that_flash_attn_does_not_take_are_refused_of_either_model(actor: Actor) -> None:
    odd = small(model__name="odd", shape=ODD_HEADS)
    even = small(model__name="even")
    for version, guesser in ((odd, None), (odd, even), (even, odd)):
        with pytest.raises(ValidationError) as refusal:
            deployment_create(
                actor=actor, name="chat", model_version=version, draft_version=guesser, **FLASH
            )
        assert refusal.value.message_dict == {
            "attention": [
                "flash-attn takes heads of a multiple of 8 values, and those of odd v1 have 12."
            ]
        }
        nothing_changed()
    deployment_create(
        actor=actor, name="chat", model_version=odd, device_class="cuda", attention="flashinfer"
    )


def test_what_is_saved_is_what_an_engine_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all of the three, types and devices, with a draft model and without; on a GPU as far as
    is known before it is looked at."""
    model_dir = random_model_dir(tmp_path, "llama")
    install(monkeypatch, flash_attention_3, flash_attention_4)
    other = small()
    versions = {n: shaped(shape={"head_dim": n}, **QWEN3) for n in (16, 12)}
    counts = {True: 0, False: 0}
    for backend, device, dtype, kv, guesses, attention, guesser, head_dim in itertools.product(
        ("native", "nanovllm"), ("cpu", "cuda"), ("auto", "float32"), ("auto", "fp8"),
        ("auto", "off", "ngram"), ("auto", "triton", "flash-attn", "flashinfer"), (None, other),
        versions,
    ):  # fmt: skip
        row = Deployment(
            name="chat", model_version=versions[head_dim], backend=backend,
            device_class=device, dtype=dtype, draft_version=guesser,
        )  # fmt: skip
        if refused(row):
            continue
        row.kv_cache_dtype, row.speculation, row.attention = kv, guesses, attention
        errors = refused(row)
        assert errors <= {"kv_cache_dtype", "speculation", "attention"}
        if backend == "nanovllm":  # guesses have nothing to act on there, and are refused by us
            errors -= {"speculation"}
        is_saved = not errors
        said = (backend, device, dtype, kv, guesses, attention, guesser, head_dim, errors)
        assert is_saved == engine_takes(row, model_dir), said
        counts[is_saved] += 1
    assert counts == {True: 122, False: 310}


def refused(row: Deployment) -> set[str]:
    try:
        row.clean()
    except ValidationError as error:
        return set(error.message_dict)
    return set()


def engine_takes(row: Deployment, model_dir: Path) -> bool:
    names = ("backend", "dtype", "kv_cache_dtype", "speculation", "attention")
    try:
        config = EngineConfig(
            model_dir=model_dir, device=row.device_class, max_sequences=2, kv_cache_tokens=256,
            draft_model_dir=None if row.draft_version is None else model_dir,
            **{name: getattr(row, name) for name in names},
        )  # fmt: skip
        if row.backend == "nanovllm":
            _settled(config)
        elif row.device_class == "cpu":
            load(config, model_config=ModelConfig.from_dir(model_dir))
        elif row.attention == "flash-attn":
            for version in (row.model_version, row.draft_version):
                if version is not None:
                    attend_by_flash_attention(plan_of(config, version))
    except (ModelError, UnfitError):
        return False
    return True


def plan_of(config: EngineConfig, version: ModelVersion, *, n_parts: int = 1) -> DevicePlan:
    return DevicePlan(
        config=config,
        model_config=model_config(Deployment(model_version=version)),
        shard=Shard(0, n_parts),
        dtype=gpu_dtype(config, capability=HOPPER),
        max_len=512,
    )


def attend_by_flash_attention(plan: DevicePlan) -> None:
    shape = AttentionShape(
        n_heads=plan.model_config.n_heads, n_kv_heads=plan.model_config.n_kv_heads,
        head_dim=plan.model_config.head_dim, block_size=plan.config.block_size, dtype=plan.dtype,
        kv_dtype=plan.kv_dtype, device=torch.device("cpu"),
    )  # fmt: skip
    for version in (FlashAttention3, FlashAttention4):
        version(shape)


# -- what it claims, and what an engine is told ----------------------------------------------------


def told(machine: Device) -> EngineConfig:
    (spec,) = reconcile(machine).specs
    return parse_options((*spec.arguments, "--socket", "s", "--epoch", "1")).engine


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_an_engine_is_told_what_is_said(
    machine: Device, option: dict[str, Any], actor: Actor
) -> None:
    deployment = deployment_create(
        actor=actor, name="chat", model_version=shaped(), device_class="cuda", **option
    )
    names = ("kv_cache_dtype", "speculation", "attention")
    said = {name: getattr(told(machine), name) for name in names}
    assert said == {**dict.fromkeys(names, "auto"), **option}
    deployment_update(deployment=deployment, actor=actor, **dict.fromkeys(option, "auto"))
    (spec,) = reconcile(machine).specs
    assert not {"--kv-cache-dtype", "--speculation", "--attention"} & set(spec.arguments)
    assert spec.revision == 2


@pytest.mark.parametrize("n_parts", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_cache_in_fp8_claims_what_its_engines_pool_takes(
    machine: Device, n_parts: int, dtype: str
) -> None:
    for kv_cache_dtype in ("auto", "fp8"):
        row = Deployment(
            name="chat", model_version=shaped(), tensor_parallel=n_parts, device_class="cuda",
            dtype=dtype, kv_cache_dtype=kv_cache_dtype, kv_cache_tokens=1024,
        )  # fmt: skip
        assert row.model_version is not None
        config = EngineConfig(
            model_dir=Path("model"), dtype=row.dtype, kv_cache_dtype=row.kv_cache_dtype,
            kv_cache_tokens=row.kv_cache_tokens, tensor_parallel=n_parts,
        )  # fmt: skip
        plan = plan_of(config, row.model_version, n_parts=n_parts)
        pool = plan.pool(config.n_blocks, device=torch.device("cpu"))
        found = replica_estimate(row, devices=Device.objects.all())
        assert found.kv_cache == pool.tensor.nbytes
        least = n_parts * plan.pool(1, device=torch.device("cpu")).tensor.nbytes
        for short, wrong in ((0, set()), (1, {"host_kv_cache_bytes", "disk_kv_cache_bytes"})):
            row.host_kv_cache_bytes = least - short
            row.disk_kv_cache_bytes = least + n_parts * TAG_BYTES - short
            assert wrong_options(row).keys() == wrong


def test_the_cache_of_a_draft_model_is_in_fp8_too(
    machine: Device, target: ModelVersion, draft: ModelVersion, actor: Actor, tmp_path: Path
) -> None:
    """Its engine leaves it so much room for each block."""
    fields = {"model_version": target, "draft_version": draft, "kv_cache_tokens": 4096, **TWO}
    deployment = deployment_create(actor=actor, name="chat", dtype="bfloat16", **fields)
    for word in ("auto", "fp8"):
        deployment = deployment_update(deployment=deployment, actor=actor, kv_cache_dtype=word)
        config = replace(told(machine), draft_model_dir=random_model_dir(tmp_path / word, "llama"))
        room = _room(config, model_config=model_config(Deployment(model_version=draft)))
        found = replica_estimate(deployment, devices=Device.objects.all())
        assert found.draft is not None
        assert found.draft.kv_cache == config.n_blocks * room.n_bytes_per_block
        kept = 2 * 8 * 2 * 64 * (1 if word == "fp8" else 2) * 4096
        assert found.kv_cache == kept
        assert Replica.objects.get().lasting_bytes == found.lasting


def test_in_fp8_fits_what_did_not(machine: Device, actor: Actor) -> None:
    fields = {"model_version": shaped(), "device_class": "cuda", "max_model_len": 4096}
    sizes = {"kv_cache_tokens": 1_500_000}  # 11.4 GiB, or half
    with pytest.raises(ValidationError, match="are missing on box/GPU-0"):
        deployment_create(actor=actor, name="chat", **fields, **sizes)
    nothing_changed()
    deployment_create(actor=actor, name="chat", kv_cache_dtype="fp8", **fields, **sizes)
    assert len(reconcile(machine).specs) == 1


def test_flashinfer_keeps_its_workspace_while_an_engine_sleeps(
    machine: Device, target: ModelVersion, draft: ModelVersion, actor: Actor
) -> None:
    fields = {"model_version": target, **SLEEP}
    deployment = deployment_create(actor=actor, name="chat", attention="triton", **fields)
    for option, n in (
        ({}, 0),
        ({"attention": "flashinfer"}, 1),
        ({"draft_version": draft}, 2),
        (TWO, 2),
    ):
        deployment = deployment_update(deployment=deployment, actor=actor, **option)
        parts = replica_estimate(deployment, devices=Device.objects.all())
        guessing = 0 if parts.draft is None else parts.draft.workspace
        assert parts.workspace + guessing == n * 280 * MIB
        kept = (512 if deployment.tensor_parallel == 1 else 1024) * MIB
        assert deployment.asleep_bytes == kept + n * 280 * MIB
        said = needs_text(deployment, now=timezone.now()).replace("\xa0", " ")
        assert said.count("280.0 MB for what attends") == n


def test_rows_that_an_older_server_writes_leave_all_to_the_engine() -> None:
    """While servers of two versions run, the older one knows nothing of the columns."""
    with connection.cursor() as cursor:
        found = connection.introspection.get_table_description(cursor, "deployments_deployment")
    defaults = {each.name: str(each.default) for each in found}
    for name in ("kv_cache_dtype", "speculation", "attention"):
        assert "auto" in defaults[name]
