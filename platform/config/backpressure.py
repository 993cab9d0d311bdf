"""Back-pressure between an application and a client's socket, for HTTP and WebSocket alike."""

import asyncio

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer


@implementer(IPushProducer)
class WriteGate:
    """Closed while the transport's buffer is over its high mark. The transport drives it as the
    producer of its data; whoever sends waits for it with a deadline."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._opened.set()

    @property
    def is_closed(self) -> bool:
        return not self._opened.is_set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until it is open; False when it stayed closed for ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._opened.wait()
        except TimeoutError:
            return False
        return True

    def pauseProducing(self) -> None:  # noqa: N802 - the interface's names
        self._opened.clear()

    def resumeProducing(self) -> None:  # noqa: N802
        self._opened.set()

    def stopProducing(self) -> None:  # noqa: N802
        """The connection is gone: nobody has to wait any more."""
        self._opened.set()
