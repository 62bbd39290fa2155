# SPDX-License-Identifier: Apache-2.0
"""`bristle policy explain`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.client import TIMEOUT, connect
from agent.cli.options import common
from agent.cli.output import print_json, printable, to_dict

if TYPE_CHECKING:
    from api.agent_pb2 import DirectionVerdict, ExplainParty, Explanation, RuleMention

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58}
_WITHOUT_PORT = frozenset({1, 58})


class PortType(click.ParamType[tuple[int, int]]):
    """`80/tcp`, `80` (TCP), `icmp`: gives (port, protocol)."""

    name = "PORT/PROTOCOL"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Fails as a usage error that says what is wrong with the value."""
        if isinstance(value, tuple):
            return value
        port, slash, name = str(value).lower().partition("/")
        if not slash and not port.isascii():
            self.fail(f"{value!r}: a port is a number", param, ctx)
        if not slash:
            port, name = (port, "tcp") if port.isdigit() else ("0", port)
        if name not in PROTOCOLS:
            self.fail(f"{name!r} is none of {', '.join(PROTOCOLS)}", param, ctx)
        protocol = PROTOCOLS[name]
        if not (port.isascii() and port.isdigit()) or int(port) > 65535:
            self.fail(f"{port!r} is no port number", param, ctx)
        if protocol in _WITHOUT_PORT:
            if int(port):
                self.fail(f"{name} has no ports: say just {name!r}", param, ctx)
        elif not int(port):
            self.fail(f"{name} needs a port, 1-65535, as in 80/{name}", param, ctx)
        return int(port), protocol


@click.command()
@common
@click.option("--from", "source", required=True, help="NAMESPACE/POD, address or CIDR.")
@click.option("--to", "destination", required=True, help="NAMESPACE/POD, address or CIDR.")
@click.option(
    "--port", type=PortType(), required=True, help="As in 80/tcp, 53/udp, 9/sctp, icmp, icmpv6."
)
def explain(
    run_dir: Path,
    bpffs_dir: Path,
    output: str,
    source: str,
    destination: str,
    port: tuple[int, int],
) -> None:
    """Which rule decides about such a packet, in each direction, and why.

    Beside the answer of the policies' own words stands that of the program loaded in the
    kernel. Exits 1 when the two differ.
    """
    with connect(run_dir) as agent:
        from api.agent_pb2 import ExplainQuery

        query = ExplainQuery(source=source, destination=destination, port=port[0], protocol=port[1])
        answer = agent.Explain(query, timeout=TIMEOUT)
    if output == "json":
        print_json(to_dict(answer))
    else:
        _print(answer)
    if not (answer.egress.agrees and answer.ingress.agrees):
        sys.exit(1)


def _print(answer: Explanation) -> None:
    from agent.core.flow import protocol_name

    what = protocol_name(answer.protocol)
    if answer.port:
        what = f"{answer.port}/{what}"
    verdict = "ALLOWED" if answer.allowed else "DENIED"
    click.echo(f"{_party(answer.source)} -> {_party(answer.destination)} {what}: {verdict}")
    for name, direction in (("Egress", answer.egress), ("Ingress", answer.ingress)):
        click.echo()
        for title, text in _direction(name, direction):
            click.echo(printable(f"{title:<10}{text}"))


def _party(party: ExplainParty) -> str:
    details = [party.address] if party.address and party.address != party.text else []
    if party.identity:
        details.append(f"identity {party.identity}")
    return printable(f"{party.text} ({', '.join(details)})" if details else party.text)


def _direction(name: str, part: DirectionVerdict) -> list[tuple[str, str]]:
    if not part.evaluated:
        lines = [(name, part.note or "not decided on this node")]
    else:
        by = _rule(part.rule, name.lower()) if part.HasField("rule") else part.decided_by
        lines = [(name, f"{_verdict(part.allowed)} by {by}")]
        if part.note:
            lines.append(("", part.note))
    if part.HasField("nearest"):
        failed = "; ".join(part.nearest.failed) or "does not match"
        lines.append(("", f"nearest:  {_rule(part.nearest, name.lower())}: {failed}"))
    kernel = part.kernel
    if kernel.available:
        reason = f" ({kernel.reason})" if kernel.reason else ""
        lines.append(("", f"kernel:   {_verdict(kernel.allowed)} by {kernel.decided_by}{reason}"))
    elif part.evaluated:
        lines.append(("", f"kernel:   not asked: {kernel.note or 'no reason given'}"))
    if not part.agrees:
        lines.append(
            ("", "!!        KERNEL AND MODEL DIFFER: run `bristle policy check` and report this")
        )
    return lines


def _rule(rule: RuleMention, direction: str) -> str:
    return f"{rule.policy}, {direction} rule {rule.index}"


def _verdict(allowed: bool) -> str:
    return "ALLOWED" if allowed else "DENIED"
