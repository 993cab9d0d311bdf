"""Refusals of the sign-in room."""

from apps.core.exceptions import (
    AppError,
    AuthenticationFailed,
    Conflict,
    InvalidRequest,
    PermissionDenied,
    Unavailable,
)


class SessionOver(AuthenticationFailed):
    default_code = "session_over"
    default_message = "You are not signed in, or not fully. Sign in again."


class SignInRefused(PermissionDenied):
    """Single sign-on does not let somebody in; the message is for them to read."""

    default_code = "sign_in_refused"
    default_message = "Single sign-on did not let you in."


class ProviderUnavailable(Unavailable):
    """The single sign-on provider cannot be asked, or answers nonsense."""

    default_code = "provider_unavailable"
    default_message = "The single sign-on provider cannot be reached at the moment."


class ConfirmationFailed(InvalidRequest):
    """Says of several secrets that one is wrong, and never which."""

    default_code = "confirmation_failed"
    default_message = "The password or the code is not right."


class SignedInTooLongAgo(Conflict):
    default_code = "signed_in_too_long_ago"
    default_message = "Sign out and in again first: this takes a sign-in of a moment ago."


class CodeWrong(InvalidRequest):
    default_code = "code_wrong"
    default_message = "This code is not right. A code works once and for about a minute."


class CodeThrottled(AppError):
    """Wrong codes make the next one wait; ``retry_after_s`` says how long."""

    status = 429
    type = "invalid_request_error"
    default_code = "code_throttled"
    default_message = "There were wrong codes; wait a moment before the next one."


class SignInLocked(AppError):
    status = 429
    type = "invalid_request_error"
    default_code = "sign_in_locked"
    default_message = "There were too many failed attempts; try again later."
