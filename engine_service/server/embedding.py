"""One running embedding request: turns what a step made for it into its one answer."""

from engine_service.backends.base import SequenceOutput
from engine_service.errors import EngineError
from engine_service.protocol import Embedded, Failed
from engine_service.server.generation import Update


class Embedding:
    """Follows one request from its start to its one terminal."""

    n_cached_tokens = 0
    n_completion_tokens = 0

    def __init__(self, *, request_id: str, n_prompt_tokens: int) -> None:
        self.request_id = request_id
        self.n_prompt_tokens = n_prompt_tokens

    def update(self, output: SequenceOutput) -> Update:
        """Account for the one output that an embedding request has."""
        if output.error is not None:
            return self.fail(output.error)
        if output.finish_reason == "abort":
            return self.fail(EngineError("the request was aborted"))
        return Update(
            answer=Embedded(
                request_id=self.request_id,
                vectors=output.vectors,
                n_prompt_tokens=self.n_prompt_tokens,
            )
        )

    def fail(self, error: EngineError) -> Update:
        """End with an error."""
        return Update(answer=Failed(request_id=self.request_id, error=error.to_wire()))
