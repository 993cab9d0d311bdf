"""How the admin looks: name, colours, side bar."""

from typing import Any

UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "Nano-LLM Engine",
    "SITE_HEADER": "Nano-LLM Engine",
    "SITE_SUBHEADER": "Operator console",
}
