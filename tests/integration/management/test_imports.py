"""Imports through the management API: from the server's disk to a version, by a real worker's
code, and cancelled."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.core.hop import database_hop
from apps.registry.models import ImportJob, ModelVersion
from tests.factories import ImportJobFactory
from tests.integration.management.conftest import error_of, events, headers_of, manager
from tests.integration.registry.conftest import gguf, places
from tests.integration.registry.places import Places, work
from tests.unit.convert.builders import llama_gguf

__all__ = ["gguf", "places"]


async def test_a_model_is_imported_and_watched(
    api: httpx.AsyncClient, places: Places, gguf: Path
) -> None:
    begun = await api.post("/imports", json={"model": "tiny", "source": "tiny.gguf"})
    assert begun.status_code == 201, begun.text
    job = begun.json()
    assert (job["object"], job["status"], job["version"]) == ("import", "queued", None)
    assert (job["model"], job["kind"], job["source"]) == ("tiny", "root", str(gguf))
    assert await database_hop(events) == [("import_job.created", "token")]
    await database_hop(work)
    done = (await api.get(f"/imports/{job['id']}")).json()
    assert (done["status"], done["version"], done["error"]) == ("done", "tiny:1", "")
    assert (done["stage"], done["percent"], done["n_attempts"]) == ("convert", 100, 1)
    assert done["asked_by"] == job["asked_by"]
    version = await database_hop(ModelVersion.objects.get)
    assert done["source_sha256"] == version.source_sha256
    # The version is said to come from whoever asked, which is the token.
    assert await database_hop(events) == [
        ("import_job.created", "token"),
        ("registered_model.created", "token"),
        ("model_version.imported", "token"),
    ]
    ended = await api.post(f"/imports/{job['id']}/cancel")
    assert error_of(ended) == (409, "import_not_cancellable", None)


def upload_of(data: bytes, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "upload": {"filename": "tiny.gguf", "size_bytes": len(data)}, **fields}


async def send(
    api: httpx.AsyncClient, job: Any, data: bytes, *, offset: Any, token: Any = None
) -> httpx.Response:
    headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
    if token is not None:
        headers |= headers_of(token)
    return await api.patch(f"/imports/{job['id']}/file", content=data, headers=headers)


async def test_a_file_is_uploaded_in_pieces(api: httpx.AsyncClient, places: Places) -> None:
    data = llama_gguf()
    half = len(data) // 2
    begun = await api.post("/imports", json=upload_of(data, sha256=sha256(data).hexdigest()))
    assert begun.status_code == 201, begun.text
    job = begun.json()
    assert (job["status"], job["kind"], job["size_bytes"]) == ("uploading", "upload", len(data))
    first = await send(api, job, data[:half], offset=0)
    assert (first.status_code, first.json()["n_received_bytes"]) == (200, half)
    # As when the answer to the first piece was lost.
    again = await send(api, job, data[:half], offset=0)
    assert error_of(again) == (409, "upload_out_of_step", None)
    last = await send(api, job, data[half:], offset=half)
    assert (last.json()["status"], last.json()["n_received_bytes"]) == ("queued", len(data))
    await database_hop(work)
    done = (await api.get(f"/imports/{job['id']}")).json()
    assert (done["status"], done["version"]) == ("done", "tiny:1")
    await database_hop(places.check)


async def test_an_upload_is_of_the_token_that_began_it(
    api: httpx.AsyncClient, places: Places
) -> None:
    data = llama_gguf()
    job = (await api.post("/imports", json=upload_of(data))).json()
    other = await database_hop(lambda: manager(role="owner"))
    viewer = await database_hop(lambda: manager(role="viewer"))
    for token in (other, viewer):
        refused = await send(api, job, data, offset=0, token=token)
        assert error_of(refused) == (403, "permission_denied", None)
    # A person whose key is the token's is somebody else.
    await database_hop(lambda: ImportJob.objects.update(actor_kind="user"))
    assert error_of(await send(api, job, data, offset=0))[:2] == (403, "permission_denied")
    assert (await database_hop(ImportJob.objects.get)).n_received_bytes == 0
    assert not places.uploads.exists() or list(places.uploads.rglob("*.gguf")) == []


async def test_a_wrong_piece_is_refused(api: httpx.AsyncClient, places: Places) -> None:
    data = llama_gguf()
    job = (await api.post("/imports", json=upload_of(data))).json()
    for offset in ("", "x", "-1", "9" * 20):
        answer = await send(api, job, data, offset=offset)
        assert error_of(answer) == (400, "invalid_value", "Upload-Offset"), offset
    assert error_of(await send(api, job, b"", offset=0)) == (400, "invalid_request", "file")
    assert error_of(await send(api, job, data + b"x", offset=0)) == (
        400, "invalid_request", "file",
    )  # fmt: skip
    as_json = await api.patch(f"/imports/{job['id']}/file", json={"a": 1})
    assert as_json.status_code == 415
    unknown = await send(api, {"id": "import-x"}, data, offset=0)
    assert unknown.status_code == 404
    assert (await database_hop(ImportJob.objects.get)).n_received_bytes == 0


async def test_one_that_waits_is_cancelled(
    api: httpx.AsyncClient, places: Places, gguf: Path
) -> None:
    body = {"model": "tiny", "source": "tiny.gguf"}
    job = (await api.post("/imports", json=body)).json()
    cancelled = await api.post(f"/imports/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    await database_hop(work)
    assert not await database_hop(ModelVersion.objects.exists)
    assert [action for action, _ in await database_hop(events)] == [
        "import_job.created",
        "import_job.cancelled",
    ]


async def test_a_source_that_is_refused_says_why(api: httpx.AsyncClient, places: Places) -> None:
    (places.root / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    job = (await api.post("/imports", json={"model": "bad", "source": "bad.gguf"})).json()
    await database_hop(work)
    failed = (await api.get(f"/imports/{job['id']}")).json()
    assert (failed["status"], failed["version"]) == ("failed", None)
    assert failed["error"]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"source": "nothing.gguf"}, "invalid_request", "source"),
        ({"source": "../models"}, "invalid_request", "source"),
        ({"source": "/etc/passwd"}, "invalid_request", "source"),
        ({"source": ""}, "invalid_value", "source"),
        ({"source": "a\0b"}, "invalid_value", "source"),
        ({"model": "../x"}, "invalid_value", "model"),
        ({"model": "tiny\n"}, "invalid_value", "model"),
        ({"sha256": "abc"}, "invalid_value", "sha256"),
        ({"kind": "command"}, "unknown_parameter", "kind"),
        ({"upload": {"filename": "a.gguf", "size_bytes": 1}}, "invalid_value", "source"),
        ({"upload": {"filename": "a.gguf"}}, "missing_required_parameter", "upload.size_bytes"),
    ],
)
async def test_a_wrong_import_is_refused_by_its_field(
    api: httpx.AsyncClient,
    places: Places,
    gguf: Path,
    change: dict[str, Any],
    code: str,
    param: str,
) -> None:
    body = {"model": "tiny", "source": "tiny.gguf", **change}
    answer = await api.post("/imports", json=body)
    assert error_of(answer) == (400, code, param), answer.text
    assert not await database_hop(ImportJob.objects.exists)
    assert await database_hop(events) == []


async def test_the_newest_come_first_and_by_status(api: httpx.AsyncClient) -> None:
    made = [
        await database_hop(lambda status=status: ImportJobFactory(status=status))
        for status in ("done", "queued", "done")
    ]
    ids = [job.job_id for job in reversed(made)]
    first = (await api.get("/imports?limit=2")).json()
    assert ([each["id"] for each in first["data"]], first["has_more"]) == (ids[:2], True)
    rest = (await api.get(f"/imports?after={ids[1]}")).json()
    assert [each["id"] for each in rest["data"]] == ids[2:]
    done = (await api.get("/imports?status=done")).json()
    assert [each["id"] for each in done["data"]] == [ids[0], ids[2]]
    assert error_of(await api.get("/imports?status=lost")) == (400, "invalid_value", "status")
    assert error_of(await api.get("/imports?after=x")) == (404, "not_found", "after")
    for path in ("imports/x", "imports/%00"):
        assert (await api.get(f"/{path}")).status_code == 404
        assert (await api.post(f"/{path}/cancel")).status_code == 404
