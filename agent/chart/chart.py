# SPDX-License-Identifier: Apache-2.0
"""The chart's folder: found, read, rendered in Helm's order."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

import agent
from agent.chart import values as values_of
from agent.chart.render import Renderer
from agent.chart.syntax import Node, TemplateError, parse

# Helm's InstallOrder, as far as the chart has these kinds; unknown ones come last, by name.
_ORDER: Final = (
    "ServiceAccount",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
)


class ChartError(Exception):
    """The chart cannot be found or read, or its templates yield no objects."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object: the file of the chart that it comes from, its text, and its kind."""

    source: str
    text: str
    kind: str
    name: str

    @property
    def document(self) -> str:
        """As Helm prints it, with the separator and the source."""
        return f"---\n# Source: {self.source}\n{self.text}"


def find() -> Path:
    """The chart's folder: in the source tree, or where an installation has it."""
    tree = Path(agent.__file__).resolve().parents[1] / "deploy" / "chart"
    installed = Path(sys.prefix) / "share" / "bristle" / "chart"
    for folder in (tree, installed):
        if (folder / "Chart.yaml").is_file():
            return folder
    raise ChartError(f"there is no chart at {tree} or {installed}")


class Chart:
    """Reads a chart's files once. Raises ChartError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.about = self._yaml("Chart.yaml")
        self.defaults = self._yaml("values.yaml")
        self.schema: Mapping[str, Any] = json.loads(self._read("values.schema.json"))

    def crds(self) -> list[Manifest]:
        """The custom resource definitions, in order of their files. Raises ChartError where there
        are none: agents could not start without them."""
        folder = self._folder / "crds"
        paths = sorted(folder.glob("*.yaml"))
        if not paths:
            raise ChartError(f"there are no custom resource definitions at {folder}")
        # Helm ends them so.
        return [self._manifest(f"crds/{path.name}", path.read_text() + "\n") for path in paths]

    def render(self, given: Mapping[str, Any], namespace: str) -> list[Manifest]:
        """All objects but the CRDs, in the order that they are to be made.

        given: what the user wants other than the defaults.
        Raises ValuesError, TemplateError, ChartError.
        """
        values = values_of.merge(self.defaults, given)
        values_of.check(values, self.schema)
        context = {
            "Values": values,
            "Release": {"Name": self.about["name"], "Namespace": namespace, "Service": "Helm"},
            "Chart": {"Name": self.about["name"], "Version": self.about["version"],
                      "AppVersion": self.about["appVersion"]},
        }  # fmt: skip
        bodies: dict[str, tuple[Node, ...]] = {}
        defined: dict[str, tuple[Node, ...]] = {}
        for path in sorted((self._folder / "templates").iterdir()):
            template = parse(path.read_text(), path.name)
            defined.update(template.defined)
            if path.suffix == ".yaml":
                bodies[path.name] = template.body
        renderer = Renderer(defined)
        found = []
        for name, body in bodies.items():
            text = renderer.render(body, context)
            if text.strip():
                found.append(self._manifest(f"templates/{name}", text.strip() + "\n"))
        return sorted(found, key=_place)

    def _manifest(self, source: str, text: str) -> Manifest:
        try:
            document = yaml.safe_load(text)
            return Manifest(
                f"{self.about['name']}/{source}",
                text,
                document["kind"],
                document["metadata"]["name"],
            )
        except (yaml.YAMLError, TypeError, KeyError) as error:
            raise ChartError(f"{source} yields no object: {error}") from error

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text()
        except OSError as error:
            raise ChartError(f"{self._folder / name}: {error.strerror}") from error

    def _yaml(self, name: str) -> dict[str, Any]:
        document = yaml.safe_load(self._read(name))
        if not isinstance(document, dict):
            raise ChartError(f"{name} is no mapping")
        return document


def _place(manifest: Manifest) -> tuple[int, str]:
    known = manifest.kind in _ORDER
    return (_ORDER.index(manifest.kind) if known else len(_ORDER)), manifest.source


__all__ = ["Chart", "ChartError", "Manifest", "TemplateError", "find"]
