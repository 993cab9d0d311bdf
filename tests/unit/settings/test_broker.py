"""The setting that names where messages to workers wait."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.settings import env


def test_files_in_a_directory_of_ours_when_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    directory = tmp_path / "with space and 100%"
    broker = env.broker("CELERY_BROKER_URL", directory_default=directory)
    assert broker.url == "filesystem://localhost/"
    assert broker.options["data_folder_in"] == broker.options["data_folder_out"]
    assert Path(broker.options["data_folder_in"]).parent == directory
    assert Path(broker.options["control_folder"]).parent == directory


@pytest.mark.parametrize("url", ["redis://cache:6379/0", "rediss://x/1", "amqp://me:it@mq//"])
def test_a_server_is_named_by_its_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    broker = env.broker("CELERY_BROKER_URL", directory_default=Path("/nowhere"))
    assert broker.url == url
    assert "data_folder_in" not in broker.options


@pytest.mark.parametrize("url", ["sqs://x", "redis", "filesystem://", "filesystem://relative/it"])
def test_what_is_no_broker_stops_the_start(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", url)
    with pytest.raises(ImproperlyConfigured, match="CELERY_BROKER_URL is not understood"):
        env.broker("CELERY_BROKER_URL", directory_default=Path("/nowhere"))
