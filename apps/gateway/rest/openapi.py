"""The OpenAPI document of the doors, generated from the code: drf-spectacular walks the URLs, and
its inspector here reads what the views declare."""

import asyncio
import functools
from collections.abc import Iterable
from typing import Any, Final, get_args

import msgspec
from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ComponentRegistry, ResolvedComponent
from rest_framework.request import Request
from uritemplate import variables

from apps.core.exceptions import AppError, AuthenticationFailed
from apps.experiments.types import MAX_CONVERSATION_CHARS
from apps.gateway import chat_schemas, messages_schemas, responses_schemas, schemas
from apps.gateway.exceptions import IDEMPOTENCY_KEY, IdempotencyKeyInUse, PreconditionFailed
from apps.gateway.rest.base import AnsweringView, InferenceView
from apps.gateway.rest.generation import CONVERSATION, FALLBACK, RESPONSE_CACHE
from apps.gateway.rest.idempotent import MAX_KEY_CHARS, REPLAYED
from apps.gateway.rest.operations import (
    BYTES,
    ERRORS,
    ERRORS_OF_A_BODY,
    ERRORS_OF_A_KEY,
    ERRORS_OF_A_NAME,
    EVENTS,
    JSON,
    Error,
    Operation,
)
from apps.gateway.rest.struct_schemas import (
    Component,
    Neutral,
    Schema,
    answer_schema,
    body_schema,
    form_schema,
)
from apps.gateway.types import Reuse, ReuseWish
from apps.metering.exceptions import LimitExceeded

NEUTRAL: Final[Neutral] = {
    **schemas.NEUTRAL,
    **chat_schemas.NEUTRAL,
    **responses_schemas.NEUTRAL,
    **messages_schemas.NEUTRAL,
}
HEADERS: Final[dict[str, Schema]] = {
    "X-Request-Id": {
        "description": "Names the request in the usage ledger and the logs.",
        "required": True,
        "schema": {"type": "string"},
    },
    "OpenAI-Processing-Ms": {
        "description": "How long the server took until its answer began.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Retry-After": {
        "description": "After how many seconds the same request may succeed.",
        "schema": {"type": "integer", "minimum": 1},
    },
    **{
        f"X-RateLimit-{what}-{of}": {"description": says, "schema": {"type": "string"}}
        for what, says in (
            ("Limit", "The tightest limit."),
            ("Remaining", "What it leaves."),
            ("Reset", "When all of it is there again, such as 1m30s."),
        )
        for of in ("requests", "tokens")
    },
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
    "ETag": {
        "description": "Changes with whatever somebody may set of it: for `If-Match`.",
        "schema": {"type": "string"},
    },
    REPLAYED: {
        "description": "The request ran before, under the same key; this is its answer again.",
        "schema": {"const": "true"},
    },
    FALLBACK: {
        "description": "The deployment that answered, where those that this model leads to were "
        "overloaded or gone.",
        "schema": {"type": "string"},
    },
    RESPONSE_CACHE: {
        "description": "On routes that keep answers: whether this one was kept, was made for an "
        "equal request at the same time, or was made anew. The first two cost nothing.",
        "schema": {"type": "string", "enum": list(get_args(Reuse))},
    },
}
REUSE_PARAMETER: Final[Schema] = {
    "in": "header",
    "name": RESPONSE_CACHE,
    "description": "On routes that keep answers: `use` takes a kept answer, and keeps this one, "
    "also where tokens are drawn; `no-store` does neither.",
    "schema": {"type": "string", "enum": list(get_args(ReuseWish))},
}
CONVERSATION_PARAMETER: Final[Schema] = {
    "in": "header",
    "name": CONVERSATION,
    "description": "Which conversation a request is of, as its client names it: experiments that "
    "are assigned by conversation keep it in one arm.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_CONVERSATION_CHARS,
        "pattern": "^[!-~]+$",
    },
}
IF_MATCH: Final[Schema] = {
    "in": "header",
    "name": "If-Match",
    "description": "ETags, or `*`: where it has none of them any more, it is refused with 412.",
    "schema": {"type": "string", "maxLength": MAX_KEY_CHARS},
}
IF_NONE_MATCH: Final[Schema] = {
    "in": "header",
    "name": "If-None-Match",
    "description": "Where it is there already, it is refused with 412.",
    "schema": {"const": "*"},
}
KEY_PARAMETER: Final[Schema] = {
    "in": "header",
    "name": IDEMPOTENCY_KEY,
    "description": "Of requests with one key, one runs; for 24 hours the others get its answer.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_KEY_CHARS,
        "pattern": "^[!-~]+$",
    },
}
ALWAYS: Final = ("X-Request-Id", "OpenAI-Processing-Ms")
MAY_COME_AGAIN: Final = frozenset({429, 503})
EVENTS_DESCRIPTION: Final = (
    'Where the body says `"stream": true`: server-sent events, the data of each a JSON object of '
    "`x-event-schemas`; chats and completions end with `data: [DONE]`, the others with an event of "
    "their own. A failure on the way is an event with the error body."
)


class DocumentGenerator(SchemaGenerator):
    """Reads the paths that the lean handler serves, unless it is given others."""

    def __init__(self, *args: Any, urlconf: Any = None, **kwargs: Any) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            *args, urlconf=urlconf or settings.API_DOCUMENT_URLCONF, **kwargs
        )


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "apps.gateway.rest.base.BearerAuthentication"
    name = "apiToken"

    def get_security_definition(self, auto_schema: AutoSchema) -> Schema:
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An API token, `Authorization: Bearer sk-nano-…`, or an access token "
            "that one was exchanged for.",
        }


class DeclaredSchema(AutoSchema):
    """Describes the doors by what they declare, and leaves other views to drf-spectacular."""

    def get_operation(
        self,
        path: str,
        path_regex: str,
        path_prefix: str,
        method: str,
        registry: ComponentRegistry,
    ) -> Schema | None:
        if not isinstance(self.view, InferenceView):
            return super().get_operation(path, path_regex, path_prefix, method, registry)
        self.registry, self.path, self.path_regex = registry, path, path_regex
        self.path_prefix, self.method = path_prefix, method.upper()
        declared = self.view.operations[method.lower()]
        body = self._body(declared)
        described: Schema = {
            "operationId": declared.id,
            "summary": declared.summary,
            "description": declared.description,
            "tags": [declared.tag],
            "parameters": self._parameters(declared),
            "requestBody": body,
            "security": self.get_auth(),
            "responses": {
                str(declared.status): self._answer(declared),
                **self._errors(declared, has_body=bool(body)),
            },
        }
        return {name: value for name, value in described.items() if value}

    def _parameters(self, declared: Operation) -> list[Schema]:
        names = variables(self.path)
        found: list[Schema] = self._resolve_path_parameters(names)  # type: ignore[no-untyped-call]
        if self._takes_key:
            found.append(KEY_PARAMETER)
        if self._reuses:
            found += [REUSE_PARAMETER, CONVERSATION_PARAMETER]
        found += [{"in": "header", **each} for each in declared.headers]
        found += [IF_MATCH] if declared.if_match else []
        found += [IF_NONE_MATCH] if declared.if_none_match else []
        if declared.query is None:
            return found
        _, components = body_schema(declared.query, NEUTRAL)
        query = components[0].schema
        self._register(components[1:])
        for name, schema in query["properties"].items():
            parameter = {"in": "query", "name": name, "schema": schema}
            if name in query["required"]:
                parameter["required"] = True
            found.append(parameter)
        return found

    @property
    def _takes_key(self) -> bool:
        takes = isinstance(self.view, InferenceView) and self.view.takes_idempotency_key
        return bool(takes and self.method == "POST")

    @property
    def _reuses(self) -> bool:
        reuses = isinstance(self.view, InferenceView) and self.view.reuses_answers
        return bool(reuses and self.method == "POST")

    def _body(self, declared: Operation) -> Schema | None:
        decoder: msgspec.json.Decoder[Any] | None = getattr(self.view, "decoder", None)
        if declared.form is not None:
            media_type, (schema, components) = "multipart/form-data", form_schema(declared.form)
        elif declared.takes_bytes:
            return {"required": True, "content": {BYTES: {"schema": {}}}}
        elif declared.body is not None:
            media_type, (schema, components) = JSON, body_schema(declared.body, NEUTRAL)
        elif self.method == "POST" and decoder is not None:
            media_type, (schema, components) = JSON, body_schema(decoder.type, NEUTRAL)
        else:
            return None
        self._register(components)
        return {"required": True, "content": {media_type: {"schema": schema}}}

    def _answer(self, declared: Operation) -> Schema:
        content: Schema = {}
        if declared.answer is not None:
            content[declared.answer_type] = {"schema": self._sent(declared.answer)}
        elif declared.answer_type != JSON:
            content[declared.answer_type] = {"schema": {}}  # a file, as it is
        if declared.events:
            content[EVENTS] = {
                "schema": {
                    "type": "string",
                    "description": EVENTS_DESCRIPTION,
                    "x-event-schemas": [self._sent(each) for each in declared.events],
                }
            }
        headers = [*ALWAYS]
        headers += [REPLAYED] if self._takes_key else []
        headers += ["ETag"] if declared.has_etag else []
        headers += [FALLBACK] if isinstance(self.view, AnsweringView) else []
        headers += [RESPONSE_CACHE] if self._reuses else []
        return self._response("The answer.", headers, content)

    def _errors(self, declared: Operation, *, has_body: bool) -> dict[str, Schema]:
        kinds = [*ERRORS, *declared.errors]
        if has_body:
            kinds += ERRORS_OF_A_BODY
        kinds += [PreconditionFailed] if declared.if_match else []
        if variables(self.path):
            kinds += ERRORS_OF_A_NAME
        if self._takes_key:
            kinds += ERRORS_OF_A_KEY
        by_status: dict[str, type[AppError]] = {}
        for kind in sorted(kinds, key=lambda kind: kind.status):
            by_status.setdefault(str(kind.status), kind)
        return {status: self._error(kind, declared.error) for status, kind in by_status.items()}

    def _error(self, kind: type[AppError], body: type[msgspec.Struct]) -> Schema:
        content = {JSON: {"schema": self._sent(body)}}
        response = self._response(kind.default_message, _headers_of(kind), content)
        if body is not Error:
            return response
        self._keep(ResolvedComponent.RESPONSE, kind.__name__, response, of=kind)
        return {"$ref": f"#/components/responses/{kind.__name__}"}

    def _sent(self, kind: Any) -> Schema:
        schema, components = answer_schema(kind)
        self._register(components)
        return schema

    def _register(self, components: Iterable[Component]) -> None:
        for each in components:
            self._keep(ResolvedComponent.SCHEMA, each.name, each.schema, of=each.struct)

    def _response(self, description: str, headers: Iterable[str], content: Schema) -> Schema:
        for name in headers:
            self._keep(ResolvedComponent.HEADER, name, HEADERS[name], of=HEADERS)
        described: Schema = {
            "description": description,
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        }
        return {**described, "content": content} if content else described

    def _keep(self, kind: str, name: str, schema: Schema, *, of: Any) -> None:
        """Register a component once; raises ValueError when its name means something else."""
        component = ResolvedComponent(  # type: ignore[no-untyped-call]
            name=name, type=kind, schema=schema, object=of
        )
        if component in self.registry and self.registry[component].schema != schema:
            raise ValueError(
                f"{name} would have two meanings in the document; give each struct a name of its "
                "own, and use none both in a body and in an answer."
            )
        self.registry.register_on_missing(component)


def _headers_of(kind: type[AppError]) -> tuple[str, ...]:
    if issubclass(kind, LimitExceeded):
        return (*ALWAYS, "Retry-After", *(name for name in HEADERS if "RateLimit" in name))
    if kind.status in MAY_COME_AGAIN or kind is IdempotencyKeyInUse:
        return (*ALWAYS, "Retry-After")
    return (*ALWAYS, "WWW-Authenticate") if kind is AuthenticationFailed else ALWAYS


@functools.cache
def document() -> bytes:
    """The document as it is served; it cannot change while the process lives."""
    made = DocumentGenerator().get_schema(public=True)  # type: ignore[no-untyped-call]
    return msgspec.json.encode(made)


class DocumentView(InferenceView):
    """Serves the document to whoever asks: who generates a client has no token yet."""

    schema = None
    authentication_classes = []
    permission_classes = []

    async def get(self, request: Request) -> HttpResponse:
        return HttpResponse(await asyncio.to_thread(document), content_type=JSON)
