"""Blocks of the KV pool on disk: in a file without a name, each encrypted under a key of its own.

K and V say what a prompt said. So no key ever leaves this process's memory: what is on disk can be
read by nobody once the process is gone, and neither can a block whose key is forgotten, whatever
the file system or the medium keeps of it. The file has no name (O_TMPFILE): the operating system
frees it when the process ends, however it ends, and no start has to clear up after another.
A block therefore never outlives the process, and the purge of a tag need not reach one that did.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine_service.errors import ModelError

logger = logging.getLogger(__name__)

TAG_BYTES: Final = 16
_KEY_BITS: Final = 256
# Each key encrypts one block, so that a nonce need not differ (NIST SP 800-38D, section 8).
_NONCE: Final = bytes(12)
_MAX_WAITING: Final = 32


@dataclass(frozen=True, slots=True)
class _Write:
    """A block that waits to be written; by ``digest`` it is known to be what is looked for."""

    content: bytearray
    digest: bytes


class DiskBlocks:
    """Slots of ``block_bytes`` in a file of ``directory``. One thread calls; another writes.

    Raises ModelError where no file can be made there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        n_slots: int,
        block_bytes: int,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        self.n_slots = n_slots
        self.n_failed_writes = 0
        self._block_bytes = block_bytes
        self._slot_bytes = block_bytes + TAG_BYTES
        self._max_waiting = max_waiting
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Kept as an object: it closes the file when this one goes.
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise ModelError(f"kv_cache_dir {directory} cannot be used: {error}") from error
        self._keys: dict[int, bytes] = {}
        self._waiting: dict[int, _Write] = {}
        self._guard = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="kv-disk")

    def put(self, slot: int, content: memoryview, *, digest: bytes) -> bool:
        """Have a block written in place of what the slot has; False if too many wait for that."""
        with self._guard:
            if slot not in self._waiting and len(self._waiting) >= self._max_waiting:
                return False
            write = self._waiting[slot] = _Write(bytearray(content), digest)
            self._keys.pop(slot, None)
        self._writer.submit(self._write, slot, write)
        return True

    def get(self, slot: int, *, digest: bytes, into: memoryview) -> bool:
        """Read a block; False, and ``into`` as it was, where it is not there as it was put."""
        with self._guard:
            write, key = self._waiting.get(slot), self._keys.get(slot)
        if write is not None:
            if write.digest == digest:
                into[:] = write.content
            return write.digest == digest
        if key is None:
            return False
        try:
            data = os.pread(self._file.fileno(), self._slot_bytes, slot * self._slot_bytes)
            into[:] = AESGCM(key).decrypt(_NONCE, data, digest)
        except (InvalidTag, OSError, ValueError) as error:
            logger.warning("a KV block on disk is unreadable, and is computed again: %r", error)
            return False
        return True

    def erase(self, slots: Sequence[int]) -> None:
        """Forget the keys of blocks, at once, and have zeros written over what is there."""
        with self._guard:
            for slot in slots:
                self._keys.pop(slot, None)
                if (write := self._waiting.pop(slot, None)) is not None:
                    write.content[:] = bytes(self._block_bytes)
        self._writer.submit(self._wipe, tuple(slots))

    def flush(self) -> None:
        """Wait until all that was put or erased so far is on its way to the disk."""
        self._writer.submit(lambda: None).result()

    def _write(self, slot: int, write: _Write) -> None:
        with self._guard:
            if self._waiting.get(slot) is not write:
                return  # erased, or something newer is put there
            content = bytes(write.content)
        key = AESGCM.generate_key(_KEY_BITS)
        is_written = self._store(slot, AESGCM(key).encrypt(_NONCE, content, write.digest))
        with self._guard:
            if self._waiting.get(slot) is write:
                del self._waiting[slot]
                if is_written:
                    self._keys[slot] = key

    def _wipe(self, slots: tuple[int, ...]) -> None:
        zeros = bytes(self._slot_bytes)
        for slot in slots:
            self._store(slot, zeros)

    def _store(self, slot: int, data: bytes) -> bool:
        try:
            n_written = os.pwrite(self._file.fileno(), data, slot * self._slot_bytes)
        except OSError as error:
            return self._failed(str(error))
        return n_written == len(data) or self._failed("the disk is full")

    def _failed(self, reason: str) -> bool:
        if not self.n_failed_writes:
            logger.warning("KV blocks cannot be written to disk, and are dropped: %s", reason)
        self.n_failed_writes += 1
        return False
