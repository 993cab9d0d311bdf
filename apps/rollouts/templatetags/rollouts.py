"""What pages of other rooms show of rollouts."""

from typing import Any

from django import template

from apps.core.access import access_in
from apps.rollouts.selectors import open_rollout_of

register = template.Library()


@register.simple_tag(takes_context=True)
def open_rollout(context: Any, route: Any) -> Any:
    """Return the open rollout of a route, for who may see rollouts; None where there is none."""
    if route is None or not access_in(context["request"]).may("rollouts.view_rollout"):
        return None
    return open_rollout_of(route)
