"""What every message of the wire protocol is made from."""

import msgspec


class Message(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="type",
    tag=lambda name: name.lower(),
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """Base of every tagged message; unknown fields are refused, so that versions cannot drift."""


class Value(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Base of the plain values that messages carry."""
