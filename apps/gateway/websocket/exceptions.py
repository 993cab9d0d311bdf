"""Errors that only sessions of ``/v1/stream`` raise."""

from apps.core.exceptions import Conflict, NotFound, Overloaded


class SessionNotFound(NotFound):
    """One answer for a session that never was, that has ended, and that is another's."""

    default_code = "session_not_found"
    default_message = "There is no such session, or it has ended."

    def __init__(self) -> None:
        super().__init__(param="session")


class ResumeWindowExceeded(Conflict):
    """Events that the client has not seen are no longer kept."""

    default_code = "resume_window_exceeded"
    default_message = "Events after 'last_event' are no longer kept; the session has ended."

    def __init__(self) -> None:
        super().__init__(param="last_event")


class TooManySessions(Overloaded):
    default_code = "too_many_sessions"
    default_message = "Too many sessions are open; close some, or connect without 'resume'."

    def __init__(self) -> None:
        super().__init__(param="resume")
