"""The WebSocket that pages of the admin are renewed over: ``/admin/live``. It only tells; what a
page sends is not read."""

import asyncio
import contextlib
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from channels.generic.websocket import AsyncWebsocketConsumer
from django.db import DatabaseError, InterfaceError

from apps.console.live import Sight, View, live_hub, sight_of
from apps.console.topics import number_in, topics_in
from apps.core.exceptions import PermissionDenied
from apps.core.hop import database_hop
from apps.core.origins import check_origin

CLOSE_SIGNED_OUT: Final = 4401
CLOSE_FORBIDDEN: Final = 4403
CLOSE_TOO_MANY: Final = 4429
CLOSE_AWAY: Final = 1013


class LiveConsumer(AsyncWebsocketConsumer):
    """One open page of somebody who is signed in. ``?log=ID``: with the logs of a deployment, and
    with what ``topics_in`` reads."""

    async def connect(self) -> None:
        self.session_key = str(self.scope["session"].session_key or "")
        self.log_of = _deployment_in(self.scope["query_string"])
        self.topics = topics_in(self.scope["query_string"])
        self.sight = Sight(deployments=frozenset(), logs=False)
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        await self.accept()
        if (code := await self._refusal()) is not None:
            await self.close(code=code)
        elif not live_hub().join(self):
            await self.close(code=CLOSE_TOO_MANY)
        else:
            self._task = asyncio.create_task(self._tell())

    async def disconnect(self, code: int) -> None:
        live_hub().leave(self)
        if self._task is not None:
            self._task.cancel()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """There is nothing to ask."""

    def end(self) -> None:
        live_hub().leave(self)
        if self._task is not None:
            self._task.cancel()
        if self._closing is None:
            self._closing = asyncio.create_task(self.close(code=CLOSE_SIGNED_OUT))

    async def _refusal(self) -> int | None:
        """Return why this page may not watch, as a close code; None where it may."""
        try:
            check_origin(dict(self.scope["headers"]))
            if not self.session_key:
                return CLOSE_SIGNED_OUT
            sight = await database_hop(sight_of, self.session_key)
        except PermissionDenied:
            return CLOSE_FORBIDDEN
        except (DatabaseError, InterfaceError):
            return CLOSE_AWAY
        if sight is None:
            user: Any = self.scope["user"]
            return CLOSE_FORBIDDEN if user.is_authenticated else CLOSE_SIGNED_OUT
        self.sight = sight
        return None

    async def _tell(self) -> None:
        """Send what is new, as fast as it is read: whoever reads slowly misses what is old."""
        told: dict[str, dict[str, str]] = {"texts": {}, "tones": {}, "logs": {}}
        view: View | None = None
        with contextlib.suppress(ConnectionError):  # its disconnect is on the way
            while True:
                view = await live_hub().news(view)
                now = self._seen(view)
                news = {
                    kind: {
                        key: text for key, text in now[kind].items() if told[kind].get(key) != text
                    }
                    for kind in now
                }
                told = now
                if any(news.values()):
                    await self.send(text_data=msgspec.json.encode(news).decode())

    def _seen(self, view: View) -> dict[str, dict[str, str]]:
        seen = [words for pk, words in view.words.items() if self.sight.sees(pk)]
        seen += [
            view.topics[topic]
            for topic in self.topics
            if topic[0] in self.sight.kinds and topic in view.topics
        ]
        logs = {}
        if self.log_of is not None and self.sight.logs and self.sight.sees(self.log_of):
            logs = dict(view.logs.get(self.log_of, {}))
        return {
            "texts": {key: text for words in seen for key, text in words.texts.items()},
            "tones": {key: tone for words in seen for key, tone in words.tones.items()},
            "logs": logs,
        }


def _deployment_in(query: bytes) -> int | None:
    return number_in(parse_qs(query.decode("latin1")).get("log", [""])[0])
