"""The setting that names where versions' files are."""

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.settings import env


def test_a_directory_when_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARTIFACTS_URL", raising=False)
    assert env.artifacts("ARTIFACTS_URL") == {"BACKEND": "apps.registry.storage.ModelsDirectory"}


def test_a_bucket_is_named_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTIFACTS_URL", "s3://models")
    assert env.artifacts("ARTIFACTS_URL")["OPTIONS"] == {"bucket_name": "models", "location": ""}
    query = "endpoint=https://s3.example.com:9000&region=eu-1&addressing=path"
    monkeypatch.setenv("ARTIFACTS_URL", f"s3://models/nano/one/?{query}")
    assert env.artifacts("ARTIFACTS_URL") == {
        "BACKEND": "apps.registry.s3_storage.S3Artifacts",
        "OPTIONS": {
            "bucket_name": "models",
            "location": "nano/one",
            "endpoint_url": "https://s3.example.com:9000",
            "region_name": "eu-1",
            "addressing_style": "path",
        },
    }


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://s3.example.com/models", "is not understood"),
        ("s3:///models", "is not understood"),
        ("s3://models?endpont=https://x", "'endpont'; it takes endpoint, region, addressing"),
        ("s3://models?endpoint=s3.example.com", "no http:// or https:// address"),
        ("s3://an-id:a-secret@models", "holds a key; set AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_is_no_storage_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("ARTIFACTS_URL", url)
    with pytest.raises(ImproperlyConfigured, match="ARTIFACTS_URL") as caught:
        env.artifacts("ARTIFACTS_URL")
    assert said in str(caught.value)
    assert "a-secret" not in str(caught.value)
