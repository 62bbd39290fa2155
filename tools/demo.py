#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows bristle at work on this machine: real pods, real programs, real packets.

A node, an outside host and five pods of a small shop are made as network namespaces; the pods are
attached by CNI calls, as a container runtime makes them, and the manifests of deploy/demo are put
in force. Everything that is printed was measured or answered just then. Nothing outside of these
namespaces is touched, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from bench.areas.measure import Helper, last_cpu, median, rounds
from bench.lab.cases import Oracle, World, differences
from bench.lab.manifests import Object
from bench.lab.netns import LabError
from bench.lab.node import Lab
from bench.lab.probe import Cell, Ports, Prober
from bench.lab.station import OUTSIDE4, Station, wire_direct
from bench.lab.talk import ask_tcp
from bench.lab.traffic import TcpFlow, Traffic
from tools import demo_output as show

MANIFESTS = Path(__file__).resolve().parents[1] / "deploy" / "demo"
PODS = ("shop/frontend", "shop/cart", "shop/db", "monitoring/prometheus", "guests/visitor")
TCP_PORTS = (443, 5432, 8080, 8081, 9100, 9187)
EXPLAINED = (
    ("shop/frontend", "shop/cart", "8081/tcp"),
    ("guests/visitor", "shop/db", "5432/tcp"),
    ("shop/cart", "198.51.100.200", "443/tcp"),
)
EXCHANGES, ROUNDS = 400, 7


def main() -> int:
    """Runs the demonstration. Exit status 1 if anything is not as it should be."""
    if os.geteuid() != 0:
        print("demo: loading BPF programs needs root. Run: sudo make demo", file=sys.stderr)
        return 1
    # An ordinary end, which cleans up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        good = _run()
    except LabError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\ndemo: interrupted; everything it made is gone", file=sys.stderr)
        return 130
    show.text(f"\nDone in {time.monotonic() - started:.0f} s; everything it made is gone.")
    return 0 if good else 1


def _run() -> bool:
    show.title("A node on this machine")
    with Lab() as lab:
        customer = Station("customer", lab.outside.namespace, lab.outside.ipv4, lab.outside.ipv6)
        payments = Station("payments", lab.far.namespace, lab.far.ipv4, lab.far.ipv6)
        _show_node(lab)
        _add_pods(lab)
        stations = [*lab.pods.values(), lab.node, customer, payments]
        good = _show_reach(lab, stations)
        _show_reasons(lab)
        good &= _show_edit(lab)
        _show_drops(lab)
        good &= _show_check(lab)
        _show_round_trips(lab)
    return good


def _show_node(lab: Lab) -> None:
    status = lab.agent.status()
    kernel = os.uname()
    show.text(f"""
    customer {lab.outside.ipv4:<12}  payments {lab.far.ipv4:<12}  the world
                  \\            /
                up0: from_uplink                          the node {lab.node.ipv4},
                        |                                 its agent is process {status.pid}
        bri*: from_pod, to_pod     a pair for each pod
         |         |        |           |            |
      frontend   cart      db      prometheus     visitor
     \\________ shop ________/     monitoring      guests
""")
    show.fact("kernel", f"{kernel.release} {kernel.machine}")
    attached = f"at pods by clsact, at uplinks by {status.attach_mode}"
    show.fact("programs", f"three BPF programs in the kernel, attached {attached}")
    show.fact("pod ranges", ", ".join(lab.pod_cidrs))
    show.fact("manifests", f"{MANIFESTS.parent.name}/{MANIFESTS.name}: namespaces, pods, policies")


def _add_pods(lab: Lab) -> None:
    show.title("Pods by CNI ADD, and who they are")
    for name in ("namespaces", "pods", "policies"):
        lab.manifests.put_text(name, (MANIFESTS / f"{name}.yaml").read_text())
    wanted = {f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in _policies()}
    lab.agent.wait(lambda: lab.agent.has_policies(wanted), "the policies to be in force")
    for name in PODS:
        namespace, pod = name.split("/")
        began = time.monotonic()
        lab.add_pod(namespace, pod, manifest=False)
        took = (time.monotonic() - began) * 1000
        show.text(f"  ADD {name:<24} {took:5.1f} ms, namespace and relay process included")
    lab.agent.wait_known(*PODS)
    show.text("")
    for line in lab.agent.cli("endpoint", "list").stdout.splitlines():
        show.text(f"  {line.rstrip()}")


def _show_reach(lab: Lab, stations: list[Station]) -> bool:
    show.title("Who may talk to whom")
    inside = list(lab.pods)
    others = [station.name for station in stations if station.name not in lab.pods]
    ports = Ports(tcp=TCP_PORTS, udp=(), sctp=(), closed=())
    with Prober(stations, ports) as prober:
        cells = prober.cells(inside, inside + others) + prober.cells(others, inside)
        began = time.monotonic()
        measured = prober.measure(cells)
        took = time.monotonic() - began
    names = [station.name for station in stations]
    show.text("  TCP ports that answer, of " + ", ".join(map(str, TCP_PORTS)) + ".")
    show.text("  all: these, and ping.  A dot: nothing.  Rows connect to columns.\n")
    show.grid(
        [name.partition("/")[2] or name for name in names],
        [[_reach(measured, a, b) for b in names] for a in names],
    )
    world = World.load(MANIFESTS / "namespaces.yaml", MANIFESTS / "pods.yaml")
    oracle = Oracle(world, stations, _policies())
    wrong = differences({cell: oracle.allowed(cell) for cell in cells}, measured)
    show.text(
        f"\n  {len(cells)} questions over IPv4 and IPv6, asked with real packets in {took:.1f} s."
    )
    return show.verdict(
        not wrong,
        "Every answer is what the policies' text says (policy/explain.py, read naively).",
        "Not what the policies' text says: " + "; ".join(wrong[:5]),
    )


def _reach(measured: dict[Cell, bool], source: str, destination: str) -> str:
    """One field: the ports that were reached, by both families or by one."""
    cells = [c for c in measured if (c.source, c.destination) == (source, destination)]
    if not cells:
        return ""
    if all(measured[cell] for cell in cells):
        return "all"
    reached: dict[int, list[int]] = {}
    for cell in cells:
        if measured[cell]:
            reached.setdefault(cell.port, []).append(cell.family)
    words = []
    for port, families in sorted(reached.items()):
        family = "" if len(families) == 2 else f"(v{families[0]})"
        words.append(("ping" if port == 0 else str(port)) + family)
    return " ".join(words) or "·"


def _show_reasons(lab: Lab) -> None:
    show.title("Why")
    for source, destination, port in EXPLAINED:
        arguments = ["policy", "explain", "--from", source, "--to", destination, "--port", port]
        show.command(f"bristle {' '.join(arguments)}")
        answer = lab.agent.cli(*arguments, check=False)
        for line in (answer.stdout + answer.stderr).splitlines():
            if line.strip():
                show.text(f"    {line.rstrip()}")
        show.text("")


def _show_edit(lab: Lab) -> bool:
    show.title("An edit cuts a running connection")
    text = (MANIFESTS / "policies.yaml").read_text()
    head, tail = text.split("\n  name: cart\n", 1)
    edited = head + "\n  name: cart\n" + tail.replace("app: frontend", "app: kiosk", 1)
    flow = TcpFlow(lab.pods["shop/frontend"], lab.pods["shop/cart"], 4, port=8081)
    show.text("  A connection frontend -> cart:8081 is open, both sides write all the time.")
    with Traffic([flow]) as traffic:
        traffic.run_for(0.5)
        _moved(traffic, flow, "before, in 0.5 s", 0.5)
        show.text("  policies.yaml, policy cart: ingress from app: frontend -> app: kiosk")
        took = _edit(lab, edited)
        show.text(f"    in force {took * 1000:.0f} ms after the file was written")
        traffic.drain()
        cut = _moved(traffic, flow, "since, in 0.5 s", 0.5)
        show.text("  and the edit taken back")
        took = _edit(lab, text)
        show.text(f"    in force after {took * 1000:.0f} ms")
        again = _moved(traffic, flow, "since, in 1.5 s (TCP waits before it tries again)", 1.5)
    return show.verdict(
        cut == 0 and again > 0 and not flow.broken,
        "Nothing got through while it was denied; then the same connection went on.",
        f"{cut} bytes got through while it was denied, {again} afterwards {flow.broken}",
    )


def _edit(lab: Lab, text: str) -> float:
    """Seconds from writing the file until the agent says that it is in force."""
    before = lab.agent.status().policy_revision
    began = time.monotonic()
    lab.manifests.put_text("policies", text)
    lab.agent.wait(lambda: lab.agent.status().policy_revision > before, "the edit to be in force")
    return time.monotonic() - began


def _moved(traffic: Traffic, flow: TcpFlow, what: str, seconds: float) -> int:
    before = sum(flow.received())
    traffic.run_for(seconds)
    moved = sum(flow.received()) - before
    show.text(f"    {moved:>8} bytes {what}")
    return moved


def _show_drops(lab: Lab) -> None:
    show.title("What the programs said about drops")
    for source, destination, port in (
        ("guests/visitor", lab.pods["shop/db"].ipv4, 5432),
        ("guests/visitor", lab.pods["shop/cart"].ipv6, 8081),
        ("shop/frontend", lab.pods["shop/db"].ipv4, 5432),
        ("shop/db", lab.far.ipv4, 443),
    ):
        ask_tcp(lab.pods[source].namespace, destination, port)
    ask_tcp(lab.outside_namespace, lab.pods["shop/cart"].ipv4, 8081, source=OUTSIDE4)
    time.sleep(0.3)  # events are read in batches
    arguments = ["monitor", "-t", "drop", "--last", "5", "-F"]
    show.command(f"bristle {' '.join(arguments)}")
    for line in lab.agent.cli(*arguments).stdout.splitlines():
        show.text(f"    {line}")


def _show_check(lab: Lab) -> bool:
    show.title("Is the kernel what the model says?")
    show.command("bristle policy check")
    done = lab.agent.cli("policy", "check", check=False)
    for line in (done.stdout + done.stderr).splitlines():
        show.text(f"    {line}")
    return show.verdict(
        done.returncode == 0, "No difference.", "The kernel differs from the model."
    )


def _show_round_trips(lab: Lab) -> None:
    show.title("What it costs: one TCP round trip of 64 bytes, same core")
    frontend, cart = lab.pods["shop/frontend"], lab.pods["shop/cart"]
    with contextlib.ExitStack() as stack:
        routed = stack.enter_context(Lab(routed=True))
        others = [routed.add_pod("shop", name) for name in ("frontend", "cart")]
        _, direct = wire_direct(others[0].namespace, others[1].namespace)
        pairs = [
            stack.enter_context(_client(a, b, address))
            for a, b, address in (
                (frontend, cart, cart.ipv4),
                (others[0], others[1], others[1].ipv4),
                (others[0], others[1], direct),
            )
        ]
        times = rounds(ROUNDS, *(partial(_round_trip, client) for client in pairs))
    for what, values in zip(
        (
            "two pods, policy in force, connections tracked",
            "the same pair of devices routed by the kernel, no BPF, no policy",
            "one direct pair between two namespaces, which no CNI can wire",
        ),
        times,
        strict=True,
    ):
        show.text(f"  {median(values) / 1000:6.1f} µs  {what}")
    show.text(
        "  Medians of a short run, beside whatever else this machine does; make bench is exact."
    )


@contextlib.contextmanager
def _client(source: Station, destination: Station, address: str) -> Iterator[Helper]:
    """A client that is connected to a server; both on one core."""
    cpu = last_cpu()
    arguments = ["serve", address, 8081, cpu]
    with (
        Helper("traffic", arguments, destination.namespace),
        Helper("traffic", ["roundtrip", address, 8081, cpu, 64], source.namespace) as client,
    ):
        client.ask(EXCHANGES)
        yield client


def _round_trip(client: Helper) -> float:
    """The median of a number of exchanges, in ns."""
    return client.ask(EXCHANGES)[0]


def _policies() -> list[Object]:
    return list(yaml.safe_load_all((MANIFESTS / "policies.yaml").read_text()))


if __name__ == "__main__":
    sys.exit(main())
