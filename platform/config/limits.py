"""How large a request's body may be: one bound for all of them, and a larger one for uploads."""

from typing import Final

from django.conf import settings

UPLOAD_PATH: Final = "/v1/files"
# What a form adds to the file in it: boundaries, headers, other fields.
_FORM_BYTES: Final = 64 * 1024


def max_body_bytes(*, method: str, path: str) -> int:
    if method == "POST" and path == UPLOAD_PATH:
        return max(settings.GATEWAY_MAX_BODY_BYTES, settings.GATEWAY_MAX_FILE_BYTES + _FORM_BYTES)
    return int(settings.GATEWAY_MAX_BODY_BYTES)
