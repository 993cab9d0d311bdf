"""Where one request is, and where it goes when an engine is full, gone or fails at it."""

from typing import Final

from apps.core.ids import MAX_ATTEMPTS
from apps.engines.exceptions import (
    EngineClientError,
    EngineDead,
    EngineOverloaded,
    EngineRequestError,
)
from apps.engines.interface import ReplicaClient
from apps.gateway.demand import outcome_note
from apps.gateway.engines import EnginePool
from apps.routing.selectors import Lease, RoutingTable

# Engines that may fail at a request once it had begun there: it may be what they fail at.
MAX_FAILED: Final = 2


class MovableLease:
    """A lease that is exchanged for another. Whoever holds it releases it."""

    def __init__(self, table: RoutingTable, lease: Lease) -> None:
        self.lease = lease
        self._table = table
        self._n_failed = 0

    def release(self) -> None:
        """Give back the lease that it has now; a second call does nothing."""
        self.lease.release()

    def move(self, error: EngineClientError, *, is_begun: bool) -> bool:
        """Take a lease elsewhere; the one before is still to be released. False where the error is
        no reason to, or nothing is left to try.

        What an engine found wrong with a request is wrong anywhere. is_begun: it was told to run.
        """
        if isinstance(error, EngineRequestError):
            return False
        if error.n_completion_tokens and not isinstance(error, EngineDead):
            return False  # its record of what it made stands, and so does its row
        if is_begun and not isinstance(error, EngineOverloaded) and not self.lease.is_via:
            self._n_failed += 1
        if self._n_failed == MAX_FAILED or self.lease.attempt == MAX_ATTEMPTS:
            return False
        elsewhere = self._table.lease_elsewhere(self.lease)
        if elsewhere is None:
            return False
        self.lease = elsewhere
        return True

    def leave_via(self) -> bool:
        """Take a lease where the route leads, as if nothing else had a say; the one before is still
        to be released. False where there is none."""
        own = self._table.lease_own(self.lease)
        if own is None:
            return False
        self.lease = own
        return True

    async def client(self, engines: EnginePool) -> ReplicaClient:
        """Return the connection to the engine of the lease, moved to one that can be reached.

        Raises:
            EngineClientError: none can.
        """
        while True:
            lease = self.lease
            try:
                return await engines.client(lease.endpoint)
            except EngineClientError as error:
                if not self.move(error, is_begun=False):
                    raise  # whoever holds it says how the last one did
                outcome_note(lease.place, error)
                lease.release()
