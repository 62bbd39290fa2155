# SPDX-License-Identifier: Apache-2.0
"""Values as YAML in the form of Helm's `toYaml`: sorted keys, lists not indented. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

import yaml


class _Dumper(yaml.SafeDumper):
    """Texts that would read as something else are in double quotes; no aliases, no folding."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    kind = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    plain = kind == "tag:yaml.org,2002:str"
    style = "|" if "\n" in text else None if plain else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_WIDTH: Final = 1 << 30


def dump(value: object) -> str:
    """The YAML text, with its final newline."""
    return yaml.dump(
        value, Dumper=_Dumper, default_flow_style=False, width=_WIDTH, allow_unicode=True
    )


def double_quoted(text: str) -> str:
    """As Go's %q for texts without control characters, which values have no use for."""
    return json.dumps(text, ensure_ascii=False)
