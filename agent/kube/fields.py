# SPDX-License-Identifier: Apache-2.0
"""Typed access to the fields of raw Kubernetes objects. Pure.

Absent and null are the same everywhere in the Kubernetes API, and so they are here.
"""

from collections.abc import Mapping

from agent.core.events import ResourceKey

Object = Mapping[object, object]


class TranslateError(Exception):
    """An object cannot be used.

    field: path of the field at fault, in the notation of the API server.
    resource: "Kind namespace/name" as far as known, for messages.
    key: the object's key, or None when the object does not say what it is.
    """

    def __init__(self, field: str, message: str, key: ResourceKey | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message
        self.key = key

    @property
    def resource(self) -> str:
        return str(self.key) if self.key else ""


_NOTHING: Object = {}


def mapping_field(obj: Object, name: str, path: str) -> Object:
    """An object field; absent and null are the empty object, as everywhere in the API."""
    value = obj.get(name)
    if value is None:
        return _NOTHING
    if not isinstance(value, Mapping):
        raise TranslateError(path, f"must be an object, not {type_name(value)}")
    return value


def list_field(obj: Object, name: str, path: str) -> list[object]:
    value = obj.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise TranslateError(path, f"must be a list, not {type_name(value)}")
    return value


def text_field(obj: Object, name: str, path: str) -> str:
    value = obj.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        hint = "" if isinstance(value, dict | list) else ": put it in quotes"
        raise TranslateError(path, f"must be text, not {shown(value)}{hint}")
    return value


def required_text(obj: Object, name: str, path: str) -> str:
    value = text_field(obj, name, path)
    if not value:
        raise TranslateError(path, "is required")
    return value


def type_name(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number"}
    return "nothing" if value is None else names.get(type(value), f"a {type(value).__name__}")


def shown(value: object) -> str:
    """A value as YAML writes it, cut to a readable length."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return type_name(value)
    return cut(repr(value) if not isinstance(value, str) else f'"{value}"')


def cut(text: str, limit: int = 80) -> str:
    """For messages: of readable length, and without control characters for a terminal to obey."""
    text = text if len(text) <= limit else text[:limit] + "…"
    return text if text.isprintable() else ascii(text)[1:-1]
