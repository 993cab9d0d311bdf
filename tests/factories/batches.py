"""Files, batches and their lines, as rows only."""

from datetime import timedelta

import factory
from django.utils import timezone
from factory.django import DjangoModelFactory

from apps.batches.models import Batch, BatchItem, UploadedFile
from tests.factories.access import TenantFactory


class UploadedFileFactory(DjangoModelFactory[UploadedFile]):
    class Meta:
        model = UploadedFile

    file_id = factory.Sequence(lambda n: f"file-{n:032x}")
    tenant = factory.SubFactory(TenantFactory)
    filename = "requests.jsonl"
    purpose = "batch"
    size_bytes = 1000


class BatchFactory(DjangoModelFactory[Batch]):
    class Meta:
        model = Batch

    class Params:
        running = factory.Trait(
            status="in_progress", in_progress_at=factory.LazyFunction(timezone.now)
        )

    batch_id = factory.Sequence(lambda n: f"batch-{n:032x}")
    tenant = factory.SubFactory(TenantFactory)
    api_token_id = 1
    endpoint = "/v1/chat/completions"
    input_file_id = factory.Sequence(lambda n: f"file-{n:032x}")
    expires_at = factory.LazyFunction(lambda: timezone.now() + timedelta(hours=24))


class BatchItemFactory(DjangoModelFactory[BatchItem]):
    class Meta:
        model = BatchItem

    batch = factory.SubFactory(BatchFactory)
    line_no = factory.Sequence(lambda n: n + 1)
    custom_id = factory.Sequence(lambda n: f"request-{n}")
    offset = 0
    n_bytes = 100
