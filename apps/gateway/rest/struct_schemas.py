"""Structs as schemas of an OpenAPI document: what msgspec says of them, and what only their use
tells: that an answer has all its fields, that a known field is refused at most values."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT, inspect

REF: Final = "#/components/schemas/{name}"
_APIS: Final = ("messages", "responses")
REFUSED: Final = (
    "Known, but not supported by this server: accepted at the value that changes nothing, "
    "refused otherwise."
)

Schema = dict[str, Any]
# By struct and field: the values beside null at which the field is not refused.
Neutral = Mapping[type[msgspec.Struct], Mapping[str, tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Component:
    name: str
    struct: type[msgspec.Struct]
    schema: Schema


def body_schema(kind: Any, neutral: Neutral) -> tuple[Schema, list[Component]]:
    """Return the schema of what a client sends, and the components that it refers to."""

    told_apart = _told_apart(kind)

    def narrow(struct: inspect.StructType, schema: Schema) -> None:
        if struct.tag_field is not None and struct.cls not in told_apart:
            schema["required"].remove(struct.tag_field)
        for name, values in neutral.get(struct.cls, {}).items():
            schema["properties"][name] = {"enum": [None, *values], "description": REFUSED}

    return _schema(kind, narrow, is_answer=False)


def answer_schema(kind: Any) -> tuple[Schema, list[Component]]:
    """Return the schema of what this server sends: what has a default is still always there."""

    def require(struct: inspect.StructType, schema: Schema) -> None:
        names = [] if struct.tag_field is None else [struct.tag_field]
        names += [field.encode_name for field in struct.fields if _is_sent(struct, field)]
        schema["required"] = names

    return _schema(kind, require, is_answer=True)


def form_schema(kind: type[msgspec.Struct]) -> tuple[Schema, list[Component]]:
    """Return the schema of a multipart body, whose bytes are files and travel as they are."""

    def as_files(struct: inspect.StructType, schema: Schema) -> None:
        for each in schema["properties"].values():
            if each.pop("contentEncoding", None):
                each["contentMediaType"] = "application/octet-stream"

    return _schema(kind, as_files, is_answer=False)


def _schema(
    kind: Any, adapt: Callable[[inspect.StructType, Schema], None], *, is_answer: bool
) -> tuple[Schema, list[Component]]:
    (schema,), named = msgspec.json.schema_components((kind,), ref_template=REF)
    structs = [
        info
        for info in _walk(inspect.type_info(kind), set())
        if isinstance(info, inspect.StructType)
    ]
    for info in structs:
        name = info.cls.__name__
        if name not in named:  # msgspec gives two structs of one name long ones
            raise ValueError(f"Two structs are named {name}; the document needs one name for each.")
        adapt(info, named[name])
    names = {info.cls.__name__: component_name(info.cls, is_answer=is_answer) for info in structs}
    components = [
        Component(
            name=component_name(info.cls, is_answer=is_answer),
            struct=info.cls,
            schema=_renamed(named[info.cls.__name__], names),
        )
        for info in structs
    ]
    return _renamed(schema, names), components


def component_name(struct: type[msgspec.Struct], *, is_answer: bool) -> str:
    """Return what a struct is called in the document: APIs that say the same thing in other forms
    have modules of their own here, and call much by the same names, in and out."""
    name, module = struct.__name__, struct.__module__.rpartition(".")[2]
    api = next((api for api in _APIS if module.startswith(api)), None)
    if api is None:
        return name
    prefix = api.title()
    if not module.endswith("_wire"):
        prefix += "Echoed" if is_answer else "Input"
    return prefix + name.removeprefix(api.title())


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """Return a schema whose references follow the components' names."""
    if isinstance(schema, list):
        return [_renamed(each, names) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _renamed(value, names) for key, value in schema.items()}
    if isinstance(ref := found.get("$ref"), str):
        name = ref.rpartition("/")[2]
        found["$ref"] = REF.format(name=names.get(name, name))
    if isinstance(mapping := schema.get("discriminator", {}), dict) and "mapping" in mapping:
        refs = {
            tag: REF.format(name=names.get(ref.rpartition("/")[2], ref.rpartition("/")[2]))
            for tag, ref in mapping["mapping"].items()
        }
        found["discriminator"] = {**mapping, "mapping": refs}
    return found


def _walk(info: inspect.Type, seen: set[Any]) -> Iterator[inspect.Type]:
    """Yield a type and every type that it leads to, each struct once."""
    if isinstance(info, inspect.StructType):
        if info.cls in seen:
            return
        seen.add(info.cls)
    yield info
    for each in _below(info):
        yield from _walk(each, seen)


def _below(info: inspect.Type) -> Iterable[inspect.Type]:
    match info:
        case inspect.StructType():
            return [field.type for field in info.fields]
        case inspect.UnionType():
            return info.types
        case inspect.TupleType():
            return info.item_types
        case inspect.CollectionType():
            return [info.item_type]
        case inspect.DictType():
            return [info.key_type, info.value_type]
        case inspect.Metadata():
            return [info.type]
        case _:
            return []


def _told_apart(kind: Any) -> set[type[msgspec.Struct]]:
    """Return the structs that stand beside others where one is to come: only of these the decoder
    wants the tag."""
    found: set[type[msgspec.Struct]] = set()
    for info in _walk(inspect.type_info(kind), set()):
        if isinstance(info, inspect.UnionType):
            structs = [each.cls for each in info.types if isinstance(each, inspect.StructType)]
            found.update(structs if len(structs) > 1 else ())
    return found


def _is_sent(struct: inspect.StructType, field: inspect.Field) -> bool:
    """Whether every answer has the field. msgspec tells a default of UNSET as none at all."""
    if field.required:
        return True
    has_default = not (field.default is NODEFAULT and field.default_factory is NODEFAULT)
    return has_default and not struct.cls.__struct_config__.omit_defaults
