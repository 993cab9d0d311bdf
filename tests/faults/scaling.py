"""A load on a product that scales, and what is seen of it: clients that ask again once they are
answered, replicas second by second, waits as the engines recorded them."""

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from tests.serve import RunningProduct

SEEN_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    finish_reason: str
    ended_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Of the deployment: how many replicas should run, how many take requests."""

    at_s: float
    n_wanted: int
    n_ready: int

    @property
    def numbers(self) -> tuple[int, int]:
        return self.n_wanted, self.n_ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A decision, as the audit trail has it."""

    at_s: float
    before: int
    after: int
    because: str
    actor: str


@dataclass(slots=True)
class Load:
    """Short answers of one deployment. Seconds are since the load was made."""

    product: RunningProduct
    tag: str
    n_tokens: int
    answers: list[Answer] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    n_asked: int = 0
    _began_s: float = field(default_factory=time.time)

    def now_s(self) -> float:
        return time.time() - self._began_s

    @asynccontextmanager
    async def clients(self, n: int, *, pause_s: float = 0.0) -> AsyncIterator[None]:
        """So many ask until the block ends; what was asked by then is answered."""
        is_over = asyncio.Event()
        headers = {"Authorization": f"Bearer {self.product.api_token}"}
        async with httpx.AsyncClient(
            base_url=self.product.base_url, headers=headers, timeout=300
        ) as http:
            asking = [asyncio.create_task(self._client(http, is_over, pause_s)) for _ in range(n)]
            try:
                yield
            finally:
                is_over.set()
                await asyncio.gather(*asking)

    async def _client(
        self, http: httpx.AsyncClient, is_over: asyncio.Event, pause_s: float
    ) -> None:
        while not is_over.is_set():
            self.n_asked += 1
            response = await http.post("/chat/completions", json=self._body())
            choices = response.json().get("choices") or [{}]
            self.answers.append(
                Answer(
                    status=response.status_code,
                    finish_reason=choices[0].get("finish_reason", ""),
                    ended_s=self.now_s(),
                )
            )
            if pause_s:
                await asyncio.sleep(pause_s)  # how often it asks

    def _body(self) -> dict[str, Any]:
        """What begins in another way each time has no prefix that would bind it to a replica."""
        content = f"{self.n_asked} {self.tag}: tell me of the sea, of ships and of storms."
        return {
            "model": self.product.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.n_tokens,
            "temperature": 1.0,
            "ignore_eos": True,
            "user": self.tag,
        }

    @asynccontextmanager
    async def watched(self, deployment: str) -> AsyncIterator[None]:
        """Look at the replicas once a second until the block ends."""
        query = f"""
            SELECT d.n_replicas, sum(CASE WHEN e.state = 'ready' THEN 1 ELSE 0 END)
            FROM deployments_deployment d
            JOIN deployments_replica r ON r.deployment_id = d.id
            JOIN engines_engineprocess e ON e.id = r.engine_process_id
            WHERE d.name = '{deployment}' GROUP BY d.n_replicas
        """

        async def watch() -> None:
            while True:
                ((n_wanted, n_ready),) = await asyncio.to_thread(self.product.rows, query)
                self.sights.append(Sight(at_s=self.now_s(), n_wanted=n_wanted, n_ready=n_ready))
                await asyncio.sleep(SEEN_EVERY_S)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        if not watching.cancelled():
            watching.result()

    def changes(self, deployment: str) -> list[Change]:
        rows = self.product.rows(
            "SELECT at, changes, actor_kind FROM audit_auditevent "
            f"WHERE action = 'deployment.scaled' AND object_label = '{deployment}' ORDER BY id"
        )
        found = []
        for at, changes, actor in rows:
            facts = json.loads(changes)
            before, after = facts["n_replicas"]
            found.append(
                Change(
                    at_s=self._since_began(at),
                    before=before,
                    after=after,
                    because=facts["because"],
                    actor=actor,
                )
            )
        return found

    def waits(self) -> list[tuple[float, float]]:
        """When each request began to wait in its engine, and for how many seconds it did."""
        rows = self.product.rows(
            "SELECT started_at, waited_ms FROM engines_journalentry WHERE request_id IN "
            f"(SELECT request_id FROM metering_usagerecord WHERE end_user = '{self.tag}') "
            "ORDER BY started_at"
        )
        return [(self._since_began(at), waited_ms / 1000) for at, waited_ms in rows]

    def _since_began(self, at: str) -> float:
        return datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp() - self._began_s


def in_bins(points: Iterable[tuple[float, float]], *, width_s: float) -> list[dict[str, float]]:
    """Sum up values by when they were: how many a second, the median and the worst."""
    found = []
    by_bin = itertools.groupby(sorted(points), key=lambda point: int(point[0] / width_s))
    for number, group in by_bin:
        values = [value for _, value in group]
        found.append(
            {
                "at_s": number * width_s,
                "per_s": round(len(values) / width_s, 2),
                "median_s": round(statistics.median(values), 3),
                "worst_s": round(max(values), 3),
            }
        )
    return found
