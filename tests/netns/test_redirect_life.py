# SPDX-License-Identifier: Apache-2.0
"""Redirected connections through the life of the agent and of pods: killed, started again, another
version, switched off, cleaned up; annotations that come and go; kernels that lack something. What
an application has sent always comes, in order, once.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from agent.kernel import bpf
from agent.kernel.maps import PinnedMap
from agent.kernel.socket_redirect import RCV_SPACE_ADJUST, SOCK_OPS, RedirectUnavailable
from agent.kernel.syscall import BpfError
from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import Pod
from bpf.maps import SPECS
from tests.netns.redirect_pods import (
    ANNOTATION,
    ON,
    Link,
    Port,
    Stream,
    agent_of,
    altered,
    by_label,
    detach_from_cgroup,
    detach_from_table,
    grown,
    pins,
    pods,
    ready,
    set_pod,
    start,
    taught,
)
from tests.netns.restart_world import source_tree

pytestmark = pytest.mark.kernel

PORT = 8000
SPLICE_F_NONBLOCK = 2


@pytest.fixture
def lab(private_mounts: None) -> Iterator[Lab]:
    """Nothing runs yet."""
    with altered({"socket_redirect": {"enabled": True}}) as made:
        yield made


def in_force(lab: Lab) -> dict[str, int]:
    """Numbers of the programs that are attached."""
    found = {}
    for name in (SOCK_OPS, RCV_SPACE_ADJUST):
        with contextlib.suppress(BpfError):
            link = bpf.object_get(lab.scope.bpffs / "redirect" / name)
            found[name] = bpf.link_info(link).program_id
            os.close(link)
    return found


def test_killed_and_started_again(lab: Lab) -> None:
    """Redirect goes on without the agent, for new connections too; the next one adopts all of it,
    and makes no second self-test."""
    start(lab)
    a, b = pods(lab)
    kept = lab.scope.state_dir / "selftest.json"
    with Port(b.namespace, PORT) as served:
        taught(lab, a.namespace, served, b.ipv4)
        with Link(lab, a.namespace, served, b.ipv4) as link, Stream(link) as stream:
            link_state = link
            lab.agent.wait(lambda: link_state.direct() == (True, True), "redirect")
            before, attached, had = kept.stat(), in_force(lab), pins(lab)
            assert len(attached) == 2
            lab.agent.kill()
            with Link(lab, a.namespace, served, b.ipv4) as other:
                other.exchange()
                assert other.direct() == (True, True)
            counted = link.redirected_bytes()
            time.sleep(0.1)
            assert link.redirected_bytes() > counted
            lab.agent.start()
            # At once: what was found out is known.
            assert lab.agent.status().socket_redirect.mode in ("on", "all")
            assert (in_force(lab), pins(lab)) == (attached, had)
            assert kept.stat().st_mtime_ns == before.st_mtime_ns
            assert link.direct() == (True, True)
            assert all(stream.received())
            with Link(lab, a.namespace, served, b.ipv4) as other:
                other.exchange()
                assert other.direct() == (True, True)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path}: {old}"
    path.write_text(text.replace(old, new))


def _other_code(tree: Path) -> None:
    _edit(tree / "bpf/sk_msg.c", "#define SHORT_MESSAGE 16384", "#define SHORT_MESSAGE 16380")
    _edit(tree / "bpf/sock_ops.c", "	if (!redirect_configuration()->enabled)",
          "	if (redirect_configuration()->enabled != 1)")  # fmt: skip


def _other_layout(tree: Path) -> None:
    with (tree / "bpf/maps.py").open("a") as source:
        source.write(
            "\n\nSOCKET_SPECS = {\n"
            "    name: replace(spec, version=spec.version + 1)\n"
            "    if name in ('socket_states', 'handshakes') else spec\n"
            "    for name, spec in SOCKET_SPECS.items()\n}\n"
        )


def redirected_anew(
    lab: Lab, stack: contextlib.ExitStack, source: Pod, port: Port, to: Pod
) -> Link:
    """A new connection that is redirected both ways, by the agent's own words: this version may
    not be able to read another's maps. The first ones may meet a change of the policy epoch."""

    def redirected() -> float:
        return by_label(lab, "bristle_socket_first_messages_total", "way")["redirected"]

    for _ in range(10):
        before = redirected()
        link = stack.enter_context(Link(lab, source.namespace, port, to.ipv4))
        link.exchange()
        if redirected() == before + 2:
            return link
    raise AssertionError("no new connection is redirected")


@pytest.mark.parametrize("change", ["code", "layout", "size"])
def test_another_version(lab: Lab, tmp_path: Path, change: str) -> None:
    """Another version's agent, and the first one's again: connections that live go on, whichever
    way, new ones are redirected by what is new, and nothing of the former stays pinned."""
    agent = agent_of(lab)
    tree = None
    if change != "size":
        tree = source_tree(tmp_path, grown=False)
        {"code": _other_code, "layout": _other_layout}[change](tree)
    start(lab)
    a, b = pods(lab)
    first_pins = pins(lab)
    with Port(b.namespace, PORT) as served, contextlib.ExitStack() as stack:
        taught(lab, a.namespace, served, b.ipv4)
        streams = []
        for _ in range(2):
            link = stack.enter_context(Link(lab, a.namespace, served, b.ipv4))
            link.exchange_until_direct()
            streams.append(stack.enter_context(Stream(link)))
        for upgrade in (True, False):
            before = in_force(lab)
            agent.kill()
            agent.tree = tree if upgrade else None
            if change == "size":
                size = 4000 if upgrade else 131072
                agent.config["socket_redirect"] = {"enabled": True, "max_sockets": size}
            start(lab)
            assert in_force(lab).keys() == before.keys()
            assert in_force(lab)[SOCK_OPS] != before[SOCK_OPS]
            taught(lab, a.namespace, served, b.ipv4)
            link = redirected_anew(lab, stack, a, served, b)
            streams.append(stack.enter_context(Stream(link)))
            known = [stream.received() for stream in streams]
            lab.agent.wait(partial(grown, streams, known), "all connections to go on")
            assert len(pins(lab)) == len(first_pins), pins(lab) - first_pins
        assert {one.partition("-")[0] for one in pins(lab)} == {
            one.partition("-")[0] for one in first_pins
        }


def test_switched_off(lab: Lab) -> None:
    """By configuration: no pin stays, connections go on by the stack; and on again."""
    agent = agent_of(lab)
    start(lab)
    a, b = pods(lab)
    with Port(b.namespace, PORT) as served:
        taught(lab, a.namespace, served, b.ipv6)
        with Link(lab, a.namespace, served, b.ipv6) as link:
            link.exchange_until_direct()
            with Stream(link) as stream:
                agent.kill()
                agent.config["socket_redirect"] = {"enabled": False}
                start(lab, "off")
                assert pins(lab) == set()
                with pytest.raises(RedirectUnavailable):
                    link.state()
                before = stream.received()
                lab.agent.wait(partial(grown, [stream], [before]), "bytes to go on")
                agent.kill()
                agent.config["socket_redirect"] = {"enabled": True}
                start(lab)
                taught(lab, a.namespace, served, b.ipv6)
                with Link(lab, a.namespace, served, b.ipv6) as other:
                    other.exchange_until_direct()


def test_annotations_come_and_go(lab: Lab) -> None:
    """Of a pod, of its namespace; the node's default; and one with a wrong value."""
    agent = agent_of(lab)
    start(lab)
    a, b = pods(lab, None)
    with Port(b.namespace, PORT) as served:

        def settles(link: Link, direct: bool) -> None:
            def so() -> bool:
                link.exchange(1)
                return link.direct() == (direct, direct)

            lab.agent.wait(so, f"a connection {'past' if direct else 'by'} the stack")

        def fresh(direct: bool) -> None:
            def so() -> bool:
                with Link(lab, a.namespace, served, b.ipv4) as link:
                    link.exchange(2)
                    return link.direct() == (direct, direct)

            lab.agent.wait(so, f"new connections {'past' if direct else 'by'} the stack")

        fresh(False)
        set_pod(lab, a, {"app": "a"})
        set_pod(lab, b, {"app": "b"})
        fresh(True)
        with Link(lab, a.namespace, served, b.ipv4) as link, Stream(link):
            pass
        with Link(lab, a.namespace, served, b.ipv4) as link:
            link.exchange_until_direct()
            set_pod(lab, b, {"app": "b"}, None)  # of the far end
            settles(link, False)
            fresh(False)
            set_pod(lab, b, {"app": "b"})
            settles(link, True)
            set_pod(lab, a, {"app": "a"}, "off")
            settles(link, False)
            set_pod(lab, a, {"app": "a"}, "yes, please")
            lab.agent.wait(lambda: problems(lab), "the wrong value to be told")
            (told,) = problems(lab)
            assert "one/a" in told and "yes, please" in told
            assert "on, off or all" in told
            link.exchange()
            assert link.direct() == (False, False)
            # By the namespace, for pods that say nothing; a pod's own word counts more.
            for pod in (a, b):
                set_pod(lab, pod, {"app": pod.pod_name}, None)
            lab.agent.wait(lambda: not problems(lab), "the problem to be gone")
            for name in ("one", "two"):
                made = manifests.namespace(name)
                made["metadata"]["annotations"] = ON
                lab.manifests.put(f"namespace-{name}", [made])
            settles(link, True)
            set_pod(lab, b, {"app": "b"}, "off")
            settles(link, False)
            set_pod(lab, b, {"app": "b"}, None)
            settles(link, True)
            lab.manifests.put("namespace-two", [manifests.namespace("two")])
            settles(link, False)
            lab.manifests.put("namespace-one", [manifests.namespace("one")])
            agent.kill()
            agent.config["socket_redirect"] = {"enabled": True, "default": "on"}
            start(lab)
            settles(link, True)
            fresh(True)


def problems(lab: Lab) -> list[str]:
    """What `status` says of annotations."""
    return [
        f"{one.name}: {one.detail}" if hasattr(one, "detail") else str(one)
        for one in lab.agent.status().problems
        if ANNOTATION in str(one)
    ]


def test_pod_goes_with_open_sockets(lab: Lab) -> None:
    """Its processes live on: they and their peers exchange nothing more; others do."""
    start(lab)
    a, b = pods(lab)
    c = lab.add_pod("two", "c", {"app": "c"}, annotations=ON)
    held = os.open(c.namespace.path, os.O_RDONLY)
    try:
        with Port(c.namespace, PORT) as gone, Port(b.namespace, PORT) as stays:
            taught(lab, a.namespace, gone, c.ipv4)
            taught(lab, a.namespace, stays, b.ipv4)
            with (
                Link(lab, a.namespace, gone, c.ipv4) as first,
                Link(lab, a.namespace, stays, b.ipv4) as second,
            ):
                first.exchange_until_direct()
                second.exchange_until_direct()
                lab.delete_pod(c)
                lab.agent.wait(
                    lambda: not any(one.pod == "c" for one in lab.agent.endpoints()), "pod c to go"
                )
                for end in (first.client, first.server):
                    with contextlib.suppress(OSError):
                        end.send(b"to nobody")
                assert not ready(first.server, select.POLLIN, 0.3)
                with contextlib.suppress(OSError):
                    assert not first.client.recv(100)
                second.exchange()
                assert second.direct() == (True, True)
    finally:
        os.close(held)


def test_taken_away_and_put_back(lab: Lab) -> None:
    """Others remove pins and links, one after another: they are there again before long."""
    agent_of(lab).before = "import agent.redirect as r; r.LOOK_SECONDS = 0.5; r.WATCH_SECONDS = 0.2"
    start(lab)
    a, b = pods(lab)
    had = pins(lab)
    with Port(b.namespace, PORT) as served:
        taught(lab, a.namespace, served, b.ipv4)
        with Link(lab, a.namespace, served, b.ipv4) as link:
            link.exchange_until_direct()
            for name in sorted(had):
                (lab.scope.bpffs / name).unlink()
                lab.agent.wait(lambda: pins(lab) == had, f"{name} to be put back")

            def again() -> bool:
                with Link(lab, a.namespace, served, b.ipv4) as other:
                    other.exchange()
                    return other.direct() == (True, True)

            for detach in (detach_from_cgroup, detach_from_table):
                wanted = agent_of(lab).said("repaired") + 1
                detach(lab)
                lab.agent.wait(partial(_repaired, lab, wanted), "a repair")
                lab.agent.wait(again, "the detached program to be attached again")
            link.exchange()
            assert link.direct() == (True, True)
    assert agent_of(lab).said("repaired") > len(had)


def _repaired(lab: Lab, times: int) -> bool:
    return agent_of(lab).said("repaired") >= times


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_cleanup(lab: Lab, killed: bool) -> None:
    """Nothing of it stays: no pin, no link, no map, no program; connections go on by the stack."""
    agent = agent_of(lab)
    start(lab)
    _, b = pods(lab)
    made = pinned_objects(lab)
    assert len(made) >= 14
    with Port(b.namespace, PORT, "127.0.0.1") as served:
        taught(lab, b.namespace, served, "127.0.0.1")
        with Link(lab, b.namespace, served, "127.0.0.1") as link:
            link.exchange_until_direct()
            if killed:
                agent.kill()
            else:
                assert agent.stop() == 0
            agent.cli("cleanup")
            assert pins(lab) == set()
            assert not (lab.scope.bpffs / "redirect").exists()
            assert not (lab.scope.state_dir / "selftest.json").exists()
            link.exchange()
    agent.wait(lambda: not made & kernel_objects(), "programs, maps and links to be freed", 30)


@pytest.mark.parametrize("family", [4, 6])
def test_stalled_reader_is_ended(lab: Lab, family: int) -> None:
    """Sockets of a port have been read by recv, and now one is by splice, which redirected bytes do
    not reach: its application and its peer get an error instead of waiting for ever. One that
    waits for its application, whichever way it reads, is left alone."""
    start(lab)
    a, b = pods(lab)
    with Port(b.namespace, PORT) as served, contextlib.ExitStack() as stack:
        taught(lab, a.namespace, served, b.address(family))
        slow, stuck = (
            stack.enter_context(Link(lab, a.namespace, served, b.address(family))) for _ in range(2)
        )
        for link in (slow, stuck):
            link.exchange_until_direct()
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)

        def splice(link: Link) -> int:
            return os.splice(link.server.fileno(), writer, 4096, flags=SPLICE_F_NONBLOCK)

        slow.client.send(b"not read yet")
        stuck.client.send(b"never to be seen")
        with pytest.raises(BlockingIOError):
            splice(stuck)
        lab.agent.wait(lambda: lab.agent.status().socket_redirect.stalls == 1, "the stall", 20)

        def told() -> bool:
            with contextlib.suppress(BlockingIOError):
                splice(stuck)
            return False

        with pytest.raises(ConnectionAbortedError):
            lab.agent.wait(told, "the reader to be told")
        assert ready(stuck.client, select.POLLIN)
        with pytest.raises(ConnectionResetError):
            stuck.client.recv(100)
        lab.agent.wait(lambda: agent_of(lab).said("the connection was ended"), "what it says")
        assert agent_of(lab).said("the connection was ended") == 1
        # Others of the port go on, by the stack from now on.
        assert slow.server.recv(100) == b"not read yet"
        slow.exchange()
        with Link(lab, a.namespace, served, b.address(family)) as link:
            link.client.send(b"by the stack")
            assert ready(link.server, select.POLLIN)
            assert splice(link) == 12
        assert lab.agent.status().socket_redirect.stalls == 1


def pinned_objects(lab: Lab) -> set[str]:
    """What redirect has pinned, by kind and number."""
    found = set()
    for name in pins(lab):
        fd = bpf.object_get(lab.scope.bpffs / name)
        kind = name.partition("/")[0]
        if kind == "maps":
            found.add(f"map {bpf.map_info(fd).id}")
        elif kind == "programs":
            found.add(f"prog {bpf.program_info(fd).id}")
        else:
            found.add(f"link {bpf.link_info(fd).id}")
        os.close(fd)
    return found


def kernel_objects() -> set[str]:
    """Programs, maps and links of this kernel."""
    found = set()
    for kind in ("prog", "map", "link"):
        done = subprocess.run(["bpftool", "-j", kind], capture_output=True, text=True, check=True)
        found |= {f"{kind} {one['id']}" for one in json.loads(done.stdout)}
    return found


SHORT_LIVES = """
import agent.loop
from agent.core import conntrack
agent.loop.CT_SECONDS = 0.3
agent.loop.Lifetimes = lambda: conntrack.Lifetimes(tcp_established=2.5, closing=1.0)
conntrack.TOLD_SECONDS = 0
"""


def test_tracked_connections_live_as_long(lab: Lab) -> None:
    """No packet of a redirected connection is seen, and yet its entries do not age out while bytes
    flow; those of one that is silent do, as do those of one that has ended."""
    agent_of(lab).before = SHORT_LIVES
    start(lab)
    a, b = pods(lab)
    with Port(b.namespace, PORT) as served:
        taught(lab, a.namespace, served, b.ipv4)
        with (
            Link(lab, a.namespace, served, b.ipv4) as alive,
            Link(lab, a.namespace, served, b.ipv4) as silent,
        ):
            for link in (alive, silent):
                link.exchange_until_direct()
            assert (tracked(lab, alive), tracked(lab, silent)) == (2, 2)
            with Stream(alive):
                lab.agent.wait(lambda: not tracked(lab, silent), "the silent one's to go", 30)
                for _ in range(20):
                    time.sleep(0.2)
                    assert tracked(lab, alive) == 2
            assert alive.direct() == (True, True)
            # Silence is no end: it goes on.
            silent.exchange()
            number = alive.client.getsockname()[1]
        lab.agent.wait(lambda: not tracked_port(lab, number), "the ended one's to go", 30)


def tracked(lab: Lab, link: Link) -> int:
    """How many entries of connection tracking a connection has."""
    return tracked_port(lab, link.client.getsockname()[1])


def tracked_port(lab: Lab, number: int) -> int:
    """How many there are with this port of the opening end."""
    found = PinnedMap.open_or_create(SPECS["ct"], lab.scope.bpffs / "maps")
    try:
        wanted = socket.htons(number)
        return sum(wanted in (key.local_port, key.remote_port) for key, _ in found.items())
    finally:
        found.close()
