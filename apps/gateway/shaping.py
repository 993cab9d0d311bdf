"""Which requests are equal: what of them shapes an answer."""

from dataclasses import fields
from typing import Any, Final

# What does not; where it leads, whoever makes a key of the rest says in other words. A field that
# is not named here shapes it.
WITHOUT_EFFECT: Final = frozenset(
    {
        "model", "end_user", "conversation", "stream", "include_usage", "max_tokens_param",
        "unsaid",
    }
)  # fmt: skip


def shaping(request: Any) -> dict[str, Any]:
    """Return the fields of a request, a dataclass, that shape its answer, by name."""
    return {
        each.name: getattr(request, each.name)
        for each in fields(request)
        if each.name not in WITHOUT_EFFECT
    }
