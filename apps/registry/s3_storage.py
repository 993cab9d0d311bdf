"""A bucket of S3's kind as the place where models' files lie. Knows objects, no version. Imported
only where one is configured: its client's library is large."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import IO, Any, Final

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from storages.backends.s3 import S3Storage

from apps.registry.exceptions import ArtifactMissing, StorageAway

_CHUNK_BYTES: Final = 256 << 10
_PART_BYTES: Final = 8 << 20
_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 20
_TRIES: Final = 2
_GONE: Final = frozenset({"404", "NoSuchKey", "NotFound"})


class S3Artifacts(S3Storage):
    """A bucket, or all below a prefix of one. No file is ever whole in memory, as it would be with
    the library's own way to open one. What it raises is an AppError. Its client finds the keys by
    itself, in the environment or with the machine's role."""

    def __init__(self, **options: Any) -> None:
        style = {"addressing_style": options.pop("addressing_style", "auto")}
        options["client_config"] = Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": _TRIES, "mode": "standard"},
            s3=style,
            # Servers of other makers know no trailing checksums. Ours is the manifest.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        super().__init__(**options)

    def put(self, name: str, content: IO[bytes], *, n_bytes: int) -> None:
        """Write an object, in parts where it is large. It is there whole or not at all."""
        parts = TransferConfig(
            multipart_threshold=_PART_BYTES,
            # A large object has at most 10,000 parts.
            multipart_chunksize=max(_PART_BYTES, -(-n_bytes // 9_000)),
            max_concurrency=4,
        )
        with _told(name):
            self._client.upload_fileobj(content, self.bucket_name, self._key(name), Config=parts)

    def chunks(self, name: str, *, offset: int) -> Iterator[bytes]:
        """Yield an object from a byte on.

        Raises:
            ArtifactMissing: there is no such object.
            StorageAway: the storage does not answer, or says no.
        """
        place: dict[str, Any] = {"Bucket": self.bucket_name, "Key": self._key(name)}
        if offset:
            place["Range"] = f"bytes={offset}-"
        with _told(name), closing(self._client.get_object(**place)["Body"]) as body:
            yield from body.iter_chunks(_CHUNK_BYTES)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size of each file of a folder, by its name."""
        with _told(folder):
            return {entry["Key"].rpartition("/")[2]: entry["Size"] for entry in self._all(folder)}

    def remove(self, folder: str) -> None:
        """Remove a folder, and what an upload that was cut off left of one. Idempotent."""
        place = {"Bucket": self.bucket_name}
        with _told(folder):
            for entry in self._all(folder):
                self._client.delete_object(**place, Key=entry["Key"])
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                **place, Prefix=f"{self._key(folder)}/"
            )
            for page in pages:
                for upload in page.get("Uploads", ()):
                    self._client.abort_multipart_upload(
                        **place, Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    def ask(self) -> None:
        """Make a round trip. Raises StorageAway."""
        with _told(""):
            self._client.list_objects_v2(Bucket=self.bucket_name, MaxKeys=1)

    def __str__(self) -> str:
        return f"s3://{self.bucket_name}/{self.location}"

    @property
    def _client(self) -> Any:
        return self.connection.meta.client  # of this thread

    def _key(self, name: str) -> str:
        return str(self._normalize_name(name))

    def _all(self, folder: str) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket_name, Prefix=f"{self._key(folder)}/"
        )
        for page in pages:
            yield from page.get("Contents", ())


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Say what the libraries raise in errors of ours."""
    try:
        yield
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _GONE and name:
            raise ArtifactMissing(f"{name} is not in the artifact storage.") from error
        raise StorageAway(f"The artifact storage says no: {error}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageAway(f"The artifact storage does not answer: {error}") from error
