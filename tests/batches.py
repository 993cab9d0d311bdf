"""Batches as a client sees them, for tests against the whole product."""

import json
from dataclasses import dataclass, field
from typing import Any

import openai

from tests.serve import RunningProduct
from tests.waiting import wait_until

ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass(slots=True)
class BatchClient:
    """Makes batches of chats with a few tokens each, and reads what became of them."""

    product: RunningProduct
    client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self.client = openai.OpenAI(
            api_key=self.product.api_token, base_url=self.product.base_url, timeout=30
        )

    def submit(self, n: int, *, max_tokens: int = 4) -> str:
        lines = [self._line(number, max_tokens=max_tokens) for number in range(n)]
        data = "\n".join(json.dumps(line) for line in lines).encode()
        file = self.client.files.create(file=("requests.jsonl", data), purpose="batch")
        batch = self.client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        return batch.id

    def n_completed(self, batch_id: str) -> int:
        counts = self.client.batches.retrieve(batch_id).request_counts
        assert counts is not None
        return counts.completed

    def wait(self, batch_id: str, *, timeout_s: float) -> Any:
        """Return the batch once it has ended."""

        def ended() -> Any:
            batch = self.client.batches.retrieve(batch_id)
            return batch if batch.status in ENDED else None

        return wait_until(f"{batch_id} to end", ended, timeout_s=timeout_s)

    def results(self, file_id: str) -> list[dict[str, Any]]:
        text = self.client.files.content(file_id).text
        return [json.loads(line) for line in text.splitlines()]

    def _line(self, number: int, *, max_tokens: int) -> dict[str, Any]:
        return {
            "custom_id": f"request-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": self.product.model,
                "messages": [{"role": "user", "content": f"Say the number {number}."}],
                "temperature": 0,
                "max_tokens": max_tokens,
            },
        }
