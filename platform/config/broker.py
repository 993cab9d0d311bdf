"""The broker of files: kombu's, but messages are there whole or not at all."""

import uuid
from math import inf
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any

from celery.worker import state
from kombu.exceptions import ChannelError
from kombu.transport import filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    # Of the two classes above it one calls it a message, as its stubs have it.
    def _put(  # type: ignore[override]
        self, queue: str, payload: dict[str, Any], **kwargs: Any
    ) -> None:
        """Kombu writes under the name by which workers find a message: one that was quick read
        half of it, ended over that, and the message was gone."""
        name = f"{monotonic_ns() // 1_000_000}_{uuid.uuid4()}.{queue}"
        draft = Path(self.data_folder_out, f"{name}.draft")
        try:
            draft.write_text(dumps(payload))
            draft.rename(draft.with_name(f"{name}.msg"))
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ChannelError(f"Cannot add a message to {draft.parent}: {error}") from error


class Transport(filesystem.Transport):
    """polling_interval: seconds between two looks at the folder, which take microseconds each."""

    Channel = Channel
    polling_interval = 0.2

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver the next message. A worker waits two seconds at a time for one, which would be
        long for somebody who wants it to stop.

        timeout: seconds; None for ever. Raises TimeoutError after it, or once the worker is to
        stop.
        """
        ends_s = inf if timeout is None else monotonic() + timeout
        while True:
            left_s = max(0.0, ends_s - monotonic())
            try:
                wait_s = min(left_s, self.polling_interval)
                return super().drain_events(connection, timeout=wait_s, **kwargs)
            except TimeoutError:
                if monotonic() >= ends_s or state.should_stop is not None:
                    raise
