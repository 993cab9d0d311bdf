"""Asks a server that was just started whether it works, as a client would: over HTTP."""

import asyncio
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: bytes

    def text(self) -> str:
        return self.body.decode("utf-8", errors="replace")


async def http_get(host: str, port: int, path: str, *, timeout_s: float) -> Answer | None:
    """Return the answer; None when nothing answers in time."""
    return await _exchange(host, port, f"GET {path}", headers={}, body=b"", timeout_s=timeout_s)


async def chat(host: str, port: int, *, token: str, model: str, timeout_s: float) -> Answer | None:
    """Ask for a few tokens through every process of the house."""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 8,
            "temperature": 0,
        }
    ).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return await _exchange(
        host, port, "POST /v1/chat/completions", headers=headers, body=body, timeout_s=timeout_s
    )


async def _exchange(
    host: str, port: int, target: str, *, headers: dict[str, str], body: bytes, timeout_s: float
) -> Answer | None:
    """HTTP/1.0: one exchange a connection, and the answer ends where the connection does."""
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            lines = {"Host": f"{host}:{port}", "Content-Length": str(len(body)), **headers}
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            writer.write(f"{target} HTTP/1.0\r\n{head}\r\n".encode() + body)
            answer = await reader.read()
    except (OSError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
    head_part, _, body_part = answer.partition(b"\r\n\r\n")
    status = head_part.split(b" ", 2)[1:2]
    return Answer(status=int(status[0]), body=body_part) if status else None
