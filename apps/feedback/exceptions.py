"""What the doors of this room refuse."""

from apps.core.exceptions import Conflict, NotFound


class RequestNotFound(NotFound):
    """No such request, or one of another tenant's."""

    default_code = "request_not_found"
    default_message = "There is no such request in the ledger."

    def __init__(self) -> None:
        super().__init__(param="request_id")


class EventIdReused(Conflict):
    """The id names another event."""

    default_code = "event_id_reused"
    default_message = "This id was used for another event; give each event an id of its own."

    def __init__(self) -> None:
        super().__init__(param="event_id")
