"""What steps have made for a connection whose reader is behind: joined, so that it takes one piece
of each answer to catch up, however many steps it was away."""

from engine_service.protocol import Delta
from engine_service.server.generation import Outbox

_ENTRY_BYTES = 64  # of a logprob, or a part of a call, beside its text


class Backlog:
    """Grows by what is new and not by steps. n_bytes: about what it takes, which has to end."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self._deltas: dict[tuple[str, int], Delta] = {}
        self._rest = Outbox()

    def add(self, outbox: Outbox) -> None:
        """Take what one step has of generations, after all before it."""
        for delta in outbox.deltas:
            key = (delta.request_id, delta.index)
            before = self._deltas.get(key)
            self._deltas[key] = delta if before is None else joined(before, delta)
            self.n_bytes += _size(delta, is_new=before is None)
        for last in outbox.finished:
            self.n_bytes += _ENTRY_BYTES + 4 * len(last.text)
        self._rest.finished += outbox.finished
        self._rest.failed += outbox.failed

    def take(self) -> Outbox:
        """Return all of it: of each request first what is new, then its end."""
        outbox, self._rest = self._rest, Outbox()
        outbox.deltas = list(self._deltas.values())
        self._deltas = {}
        self.n_bytes = 0
        return outbox


def joined(first: Delta, later: Delta) -> Delta:
    """Return one delta for two of the same answer."""
    return Delta(
        request_id=first.request_id,
        index=first.index,
        text=first.text + later.text,
        n_tokens=first.n_tokens + later.n_tokens,
        finish_reason=later.finish_reason,
        stop=later.stop,
        reasoning=first.reasoning + later.reasoning,
        tool_calls=first.tool_calls + later.tool_calls,
        logprobs=first.logprobs + later.logprobs,
        prompt_logprobs=first.prompt_logprobs + later.prompt_logprobs,
    )


def _size(delta: Delta, *, is_new: bool) -> int:
    n_bytes = 4 * (len(delta.text) + len(delta.reasoning)) + _ENTRY_BYTES * is_new
    n_bytes += sum(_ENTRY_BYTES + 4 * len(call.arguments) for call in delta.tool_calls)
    for logprobs in (delta.logprobs, delta.prompt_logprobs):
        n_bytes += sum(_ENTRY_BYTES * (1 + len(each.top)) for each in logprobs)
    return n_bytes
