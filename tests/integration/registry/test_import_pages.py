"""The pages of imports: begun, watched, uploaded and cancelled by those who may, and by nobody
else."""

import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.rbac.models import User
from apps.registry.models import ImportJob, ModelVersion
from tests.factories import ImportJobFactory
from tests.integration.console.pages import messages, staff
from tests.integration.registry.places import Places, again, work
from tests.rows import all_of
from tests.unit.convert.builders import llama_gguf

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "admin:registry_importjob_add"
FORM = {"model_name": "tiny", "kind": "root", "source": "tiny.gguf", "expected_sha256": ""}


def address(page: str, job: ImportJob) -> str:
    return reverse(f"admin:registry_importjob_{page}", args=[job.pk])


def begin(client: Client, job: ImportJob, **fields: Any) -> Any:
    body = {"name": "tiny.gguf", "size_bytes": 10} | fields
    return client.post(address("upload", job), json.dumps(body), content_type="application/json")


def piece(client: Client, job: ImportJob, data: bytes, *, offset: int | str) -> Any:
    return client.post(
        address("upload", job),
        data,
        content_type="application/octet-stream",
        headers={"Upload-Offset": str(offset)},
    )


def state() -> list[Any]:
    return [list(model.values()) for model in (ImportJob.objects, all_of(AuditEvent))]


def test_a_file_on_the_server_is_imported(
    places: Places, gguf: Path, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    page = admin_client.get(reverse(ADD)).content.decode()
    assert str(places.root) in page
    assert "tiny.gguf" in page
    assert "The command line" not in page
    response = admin_client.post(reverse(ADD), FORM)
    job = ImportJob.objects.get()
    assert response["Location"] == address("change", job)
    assert (job.kind, job.source, job.actor_label) == ("root", str(gguf), "admin")
    work()
    with django_assert_max_num_queries(30):
        shown = admin_client.get(address("change", job)).content.decode()
    version = ModelVersion.objects.get()
    assert reverse("admin:registry_modelversion_change", args=[version.pk]) in shown
    assert "tiny v1" in shown


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "/etc/passwd"}, "There is no such file or folder below"),
        ({"source": ""}, "There is no such file or folder below"),
        ({"model_name": "a/b"}, "Use letters, digits"),
        ({"expected_sha256": "zz"}, "64 lower-case hexadecimal digits"),
        ({"kind": "command"}, "Select a valid choice"),
    ],
)
def test_the_form_says_what_is_wrong(
    places: Places, gguf: Path, admin_client: Client, changes: dict[str, str], says: str
) -> None:
    before = state()
    response = admin_client.post(reverse(ADD), FORM | changes)
    assert response.status_code == 200
    assert says in response.content.decode()
    assert state() == before


def test_an_upload_in_pieces(places: Places, admin_client: Client) -> None:
    data = llama_gguf()
    admin_client.post(reverse(ADD), FORM | {"kind": "upload"})
    job = ImportJob.objects.get()
    assert (job.status, job.source) == ("uploading", "")
    assert 'id="import-upload"' in admin_client.get(address("change", job)).content.decode()
    assert begin(admin_client, job, size_bytes=len(data)).json() == {
        "status": "uploading", "n_received_bytes": 0, "piece_bytes": 4 << 20,
    }  # fmt: skip
    assert piece(admin_client, job, data[:7000], offset=0).json()["n_received_bytes"] == 7000
    late = piece(admin_client, job, data[:7000], offset=0)
    assert (late.status_code, late.json()["error"]["code"]) == (409, "upload_out_of_step")
    live = admin_client.get(address("live", job))
    assert "Uploading" in live.content.decode()
    assert "no-store" in live["Cache-Control"]
    assert begin(admin_client, job, size_bytes=len(data)).json()["n_received_bytes"] == 7000
    assert piece(admin_client, job, data[7000:], offset=7000).json()["status"] == "queued"
    work()
    assert "Done" in admin_client.get(address("live", job)).content.decode()
    places.check()


def test_bad_pieces_are_refused_by_field(
    places: Places, admin_client: Client, admin_user: User, settings: Any
) -> None:
    settings.GATEWAY_MAX_BODY_BYTES = 100
    job = ImportJobFactory(kind="upload", status="uploading", source="", actor_id=admin_user.pk)
    assert begin(admin_client, job, size_bytes=1000).json()["piece_bytes"] == 100
    for answer, status, param in (
        (begin(admin_client, job, name="a.exe"), 400, "file"),
        (begin(admin_client, job, name=7), 400, "file"),
        (begin(admin_client, job, more=1), 400, "file"),
        (begin(admin_client, job, size_bytes=-1), 400, "file"),
        (begin(admin_client, job, size_bytes=1 << 62), 413, "file"),
        (piece(admin_client, job, b"x", offset="x"), 400, "Upload-Offset"),
        (piece(admin_client, job, b"x", offset=-1), 400, "Upload-Offset"),
        (piece(admin_client, job, b"x", offset="9" * 30), 400, "Upload-Offset"),
        (piece(admin_client, job, b"", offset=0), 400, "file"),
    ):
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert again(job).n_received_bytes == 0
    assert admin_client.get(address("upload", job)).status_code == 405


def test_who_may_only_look_begins_uploads_and_cancels_nothing(places: Places, gguf: Path) -> None:
    client = staff("view_importjob")
    user = User.objects.get(pk=client.session["_auth_user_id"])
    job = ImportJobFactory(kind="upload", status="uploading", source="", actor_id=user.pk)
    before = state()
    assert client.get(address("change", job)).status_code == 200
    assert client.get(address("live", job)).status_code == 200
    assert client.get(reverse(ADD)).status_code == 403
    assert client.post(reverse(ADD), FORM).status_code == 403
    assert begin(client, job).status_code == 403
    assert piece(client, job, b"x", offset=0).status_code == 403
    assert client.post(address("cancel", job), {"_form_submitted": "True"}).status_code == 403
    assert client.post(address("delete", job), {"post": "yes"}).status_code == 403
    assert state() == before
    assert not places.uploads.exists()


def test_who_may_nothing_sees_nothing(places: Places) -> None:
    client, job = staff(), ImportJobFactory()
    for page in ("change", "live"):
        assert client.get(address(page, job)).status_code == 403
    assert client.get(reverse("admin:registry_importjob_changelist")).status_code == 403


@pytest.mark.parametrize("whose", ["another person's", "a token's of the same number"])
def test_an_upload_is_whose_it_is(
    whose: str, places: Places, admin_user: User, admin_client: Client
) -> None:
    job = ImportJobFactory(kind="upload", status="uploading", source="", actor_id=0)
    if whose.startswith("a token"):
        job.actor_kind, job.actor_id = "token", admin_user.pk
        job.save()
    before = state()
    assert begin(admin_client, job).status_code == 403
    assert piece(admin_client, job, b"x", offset=0).status_code == 403
    assert 'id="import-upload"' not in admin_client.get(address("change", job)).content.decode()
    assert state() == before


def test_cancelling(places: Places, admin_client: Client) -> None:
    job = ImportJobFactory()
    response = admin_client.post(address("cancel", job), {"_form_submitted": "True"})
    assert (again(job).status, response["Location"]) == ("cancelled", address("change", job))
    admin_client.post(address("cancel", job), {"_form_submitted": "True"})
    assert messages(admin_client, address("change", job))[-1] == (
        "The import is cancelled; it cannot be cancelled any more."
    )


def test_what_a_source_says_of_itself_is_text(places: Places, admin_client: Client) -> None:
    job = ImportJobFactory(status="failed", error="<script>x</script>", log="<b>", source="<i>")
    page = admin_client.get(address("change", job)).content.decode()
    for text in ("<script>x", "<b>", "<i>"):
        assert text not in page
