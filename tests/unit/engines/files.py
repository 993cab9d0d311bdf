"""A storage of files in memory, and versions in it, for tests of what is fetched."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator

from apps.registry.types import Artifact

CHUNK = 1000


class MemoryStorage:
    """What is read of it is counted, by name. ``on_chunk`` hears of each piece before it comes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.reads: Counter[str] = Counter()
        self.offsets: list[tuple[str, int]] = []
        self.on_chunk: Callable[[str, int], None] = lambda name, at: None

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        self.reads[name] += 1
        self.offsets.append((name, offset))
        data = self.files[name]
        for at in range(offset, len(data), CHUNK):
            self.on_chunk(name, at)
            yield data[at : at + CHUNK]

    def add(self, path: str, **sizes: int) -> Artifact:
        """Put a version there, with files of these sizes."""
        files = {}
        for name, size in sizes.items():
            data = hashlib.sha256(f"{path}/{name}".encode()).digest() * (size // 32 + 1)
            self.files[f"{path}/{name}"] = data[:size]
            files[name] = {"sha256": hashlib.sha256(data[:size]).hexdigest(), "size_bytes": size}
        manifest = json.dumps({"files": files}).encode()
        self.files[f"{path}/manifest.json"] = manifest
        return Artifact(
            path=path,
            manifest_sha256=hashlib.sha256(manifest).hexdigest(),
            size_bytes=len(manifest) + sum(sizes.values()),
        )
