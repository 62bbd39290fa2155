# SPDX-License-Identifier: Apache-2.0
"""Objects held against the official client's models: unknown fields and wrong types."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import kubernetes.client
from pydantic import BaseModel, ValidationError


def faults(kind: str, item: dict[str, Any]) -> list[str]:
    """What the API would not take, such as `spec.replica: unknown field`; kind: V1DaemonSet."""
    model = getattr(kubernetes.client, kind)
    found = list(_unknown(model, item, kind))
    try:
        model.model_validate(item)
    except ValidationError as error:
        found += [str(error)]
    return found


def _unknown(model: type[BaseModel], value: dict[str, Any], place: str) -> Iterator[str]:
    known = {
        field.serialization_alias or field.alias or name: field
        for name, field in model.model_fields.items()
    }
    for key, inner in value.items():
        if key not in known:
            yield f"{place}.{key}: unknown field"
            continue
        below = _model_in(known[key].annotation)
        if below is None:
            continue
        items = inner if isinstance(inner, list) else [inner]
        if isinstance(inner, dict) and _is_map(known[key].annotation):
            items = list(inner.values())
        for index, item in enumerate(items):
            if isinstance(item, dict):
                yield from _unknown(below, item, f"{place}.{key}[{index}]")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside of Optional, list or dict, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def _is_map(annotation: Any) -> bool:
    return any(typing.get_origin(one) is dict for one in (annotation, *typing.get_args(annotation)))
