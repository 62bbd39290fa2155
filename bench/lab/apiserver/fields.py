# SPDX-License-Identifier: Apache-2.0
"""Fields and types of the built-in kinds: `fields.json`, written from the official client's models.

    python -m bench.lab.apiserver.fields    # after an update of the client

Form: {type: {field: code}}. Codes: s string, i integer, f number, b boolean, t time, * anything,
[code] list, {code} map of strings to code, and else the name of another type.
"""

from __future__ import annotations

import importlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("fields.json")
ROOTS = (
    "V1Pod",
    "V1Namespace",
    "V1Node",
    "V1Service",
    "CoreV1Event",
    "EventsV1Event",
    "V1EndpointSlice",
    "V1NetworkPolicy",
    "V1Lease",
    "V1CustomResourceDefinition",
)
SIMPLE = {
    "str": "s",
    "bytes": "s",
    "int": "i",
    "float": "f",
    "bool": "b",
    "datetime": "t",
    "object": "*",
}
# Schemas of custom resources are recursive; structural.py knows what they may hold.
OPAQUE = {"V1JSONSchemaProps"}

Types = dict[str, dict[str, str]]


@cache
def load() -> Types:
    """What the file holds."""
    types: Types = json.loads(FILE.read_text())
    return types


def generate() -> Types:
    """The types that the roots need, from the models of the official client."""
    models: Any = importlib.import_module("kubernetes.client").models
    found: Types = {}
    pending = list(ROOTS)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        model = getattr(models, name)
        found[name] = {}
        for attribute, kind in model.openapi_types.items():
            code = _code(kind)
            found[name][model.attribute_map[attribute]] = code
            inner = code.strip("[]{}")
            if len(inner) > 1:
                pending.append(inner)
    return {name: found[name] for name in sorted(found)}


def _code(kind: str) -> str:
    if found := re.fullmatch(r"(?:List|list)\[(.+)\]", kind):
        return f"[{_code(found[1])}]"
    if found := re.fullmatch(r"(?:dict\(|Dict\[)str, (.+)[\])]", kind):
        return f"{{{_code(found[1])}}}"
    return "*" if kind in OPAQUE else SIMPLE.get(kind, kind)


def text(types: Types) -> str:
    """The file's content: one line for each type."""
    lines = [f"{json.dumps(name)}: {json.dumps(types[name])}" for name in types]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text(generate()))
