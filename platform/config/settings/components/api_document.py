"""How the OpenAPI document is made, and what it says of the API as a whole."""

from typing import Any

REST_FRAMEWORK: dict[str, Any] = {
    "DEFAULT_SCHEMA_CLASS": "apps.gateway.rest.openapi.DeclaredSchema",
}

# Of the doors alone: management pages have no place in it.
API_DOCUMENT_URLCONF = "config.doors"

SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Nano-LLM Engine API",
    "VERSION": "1",
    "DESCRIPTION": (
        "Models behind the wire format that clients of OpenAI know. Give a client the address of "
        "this server with `/v1` and an API token.\n\n"
        "Nothing is ignored in silence: a field that cannot be honoured is refused with its name "
        "in `param`. Many requests on one connection: the WebSocket `/v1/stream`."
    ),
    "OAS_VERSION": "3.1.0",  # the first whose schemas are JSON Schema, which structs speak
    "DEFAULT_GENERATOR_CLASS": "apps.gateway.rest.openapi.DocumentGenerator",
    "POSTPROCESSING_HOOKS": [],  # the stock one renames enumerations
}
