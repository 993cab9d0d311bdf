"""What services and the database say no to, as the one error body has it: a status, and the field
by the name that the body of the request has for it."""

from collections.abc import Mapping

from django.core.exceptions import ValidationError
from django.db import IntegrityError

from apps.core.exceptions import Conflict, InvalidRequest


def refusal_of(error: Exception, *, names: Mapping[str, str]) -> Exception:
    """Return what a client is told in place of an error that doors do not know; others as they
    are. names: column → field, where the two differ."""
    match error:
        case ValidationError():
            return _wrong_field(error, names=names)
        case IntegrityError():
            return Conflict("Somebody else changed this at the same time; look again.")
        case _:
            return error


def _wrong_field(error: ValidationError, *, names: Mapping[str, str]) -> Exception:
    """Tell of the first field that is wrong: the others come with the next try."""
    if not hasattr(error, "error_dict"):
        return InvalidRequest(" ".join(error.messages), code="invalid_value")
    column, errors = next(iter(error.error_dict.items()))
    said = " ".join(text for each in errors for text in each.messages)
    field = None if column == "__all__" else names.get(column, column)
    message = f"'{field}': {said}" if field is not None else said
    code = errors[0].code
    if code == "unique":
        return Conflict(message, code="already_exists", param=field)
    if code == "does_not_fit":
        return Conflict(message, code=code, param=field)
    return InvalidRequest(message, code="invalid_value", param=field)
