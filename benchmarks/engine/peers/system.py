"""What the benchmark asks of every engine, ours and the others."""

from dataclasses import dataclass
from typing import Protocol

from benchmarks.workload import Job, Timeline


@dataclass(frozen=True, slots=True)
class Answer:
    """token_ids: None where an engine tells text only while it is timed."""

    timeline: Timeline
    token_ids: tuple[int, ...] | None


class System(Protocol):
    """name: as in the results. how: the version, and how it is run. levels: the numbers of jobs
    under way at which it is measured."""

    name: str
    how: str
    levels: tuple[int, ...]

    async def start(self) -> None:
        """Load the model. Raises Unavailable where that cannot be."""

    async def run(self, jobs: list[Job], *, concurrency: int) -> list[Answer]:
        """Run jobs, that many under way at any time. Raises Unavailable if the system ended."""

    def pause(self) -> None:
        """Use no processor until ``resume``."""

    def resume(self) -> None: ...

    async def stop(self) -> None:
        """End its processes, whatever state they are in."""
