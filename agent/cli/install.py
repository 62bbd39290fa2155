# SPDX-License-Identifier: Apache-2.0
"""`bristle install`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

DEFAULT_NAMESPACE = "kube-system"


@click.command()
@click.option(
    "-f",
    "--values",
    "files",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="YAML file of values; may be repeated, later ones win.",
)
@click.option(
    "--set",
    "sets",
    metavar="KEY=VALUE",
    multiple=True,
    help="A value, such as routingMode=native or devices={eth0,eth1}.",
)
@click.option("-n", "--namespace", default=DEFAULT_NAMESPACE, show_default=True)
@click.option("--crds/--no-crds", default=True, help="Custom resource definitions, too.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    default="-",
    show_default=True,
    help="Folder for a file of each object; - prints them.",
)
def install(
    files: tuple[Path, ...], sets: tuple[str, ...], namespace: str, crds: bool, output: Path
) -> None:
    """Print the manifests that the Helm chart renders, for kubectl apply.

    They are the chart's own files; the same values give the same objects.
    """
    from agent.chart.chart import Chart, ChartError, TemplateError, find
    from agent.chart.values import ValuesError, combine

    try:
        chart = Chart(find())
        given = combine((_read(path) for path in files), sets)
        manifests = [*(chart.crds() if crds else []), *chart.render(given, namespace)]
    except (ChartError, TemplateError, ValuesError) as error:
        raise click.ClickException(str(error)) from None
    if str(output) == "-":
        for manifest in manifests:
            click.echo(manifest.document, nl=False)
        return
    output.mkdir(parents=True, exist_ok=True)
    for number, manifest in enumerate(manifests):
        # The order of the names is the order in which to apply them.
        name = f"{number:02d}-{manifest.kind.lower()}-{manifest.name}.yaml"
        (output / name).write_text(manifest.document)
        click.echo(output / name)


def _read(path: Path) -> dict[str, Any]:
    from agent.kube.text import DocumentError
    from agent.kube.yamltext import parse_yaml

    try:
        document = parse_yaml(path.read_bytes())
    except (OSError, DocumentError) as error:
        raise click.ClickException(f"{path}: {error}") from None
    if document is not None and not isinstance(document, dict):
        raise click.ClickException(f"{path}: expected a mapping of values")
    return document or {}
