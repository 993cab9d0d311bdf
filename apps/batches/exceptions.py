"""Errors of the batch room."""

from apps.core.exceptions import Conflict, NotFound, PayloadTooLarge


class FileNotFound(NotFound):
    default_code = "file_not_found"

    def __init__(self, file_id: str, *, param: str | None = None) -> None:
        super().__init__(f"No such file: {file_id[:80]!r}.", param=param)


class BatchNotFound(NotFound):
    default_code = "batch_not_found"

    def __init__(self, batch_id: str, *, param: str | None = None) -> None:
        super().__init__(f"No such batch: {batch_id[:80]!r}.", param=param)


class FileInUse(Conflict):
    default_code = "file_in_use"


class NotCancellable(Conflict):
    default_code = "batch_not_cancellable"


class StorageFull(PayloadTooLarge):
    default_code = "storage_limit_exceeded"


class LeaseLost(Exception):
    """Another worker holds the batch, or it has ended: whoever gets this stops and writes nothing
    more."""
