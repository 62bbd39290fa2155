# SPDX-License-Identifier: Apache-2.0
"""An agent that is started while the API server is away: what was in force stays so, what cannot
be done is said with the reason, and what can be done is done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import grpc
import pytest

from bench.lab import manifests
from bench.lab.netns import LabError
from bench.lab.node import Lab
from bench.lab.talk import Server, ask_udp

pytestmark = pytest.mark.kernel

PORT = 8080
HEALTH = ("127.0.0.1", 9879)
DB = {"podSelector": {"matchLabels": {"app": "db"}}}
WEB = {"podSelector": {"matchLabels": {"app": "web"}}}
WORKERS = 32  # requests that the agent serves at once (ServerOptions)


CONFIG = {"health": {"address": ":".join(map(str, HEALTH))}}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(api=True, config=CONFIG) as made:
        made.manifests.put("namespaces", [manifests.namespace("shop")])
        yield made


def probe(lab: Lab, path: str) -> tuple[int, str]:
    """What a kubelet's probe gets; nothing while there is nobody to ask."""

    def ask() -> tuple[int, str]:
        connection = HTTPConnection(*HEALTH, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    with contextlib.suppress(OSError):
        return lab.node_namespace.run(ask)
    return 0, ""


def refusal(lab: Lab, command: str, name: str, netns: str, **config: object) -> str:
    """Why a request is refused."""
    with pytest.raises(LabError) as caught:
        lab.cni(command, f"{lab.scope.prefix}-shop-{name}", netns, "shop", name, **config)
    return str(caught.value)


def problems(lab: Lab) -> str:
    with contextlib.suppress(grpc.RpcError):  # it is just starting
        return "; ".join(f"{one.what}: {one.message}" for one in lab.agent.status().problems)
    return ""


def test_started_without_the_api_server(lab: Lab) -> None:
    db = lab.add_pod("shop", "db", {"app": "db"})
    web = lab.add_pod("shop", "web", {"app": "web"})
    guest = lab.add_pod("shop", "guest", {"app": "guest"})
    lab.set_policies([manifests.policy("shop", "db", {**DB, "ingress": [{"from": [WEB]}]})])
    late = lab.scope.namespace("late")

    def in_force() -> bool:
        return bool(ask_udp(web.namespace, db.ipv4, PORT)) and not ask_udp(
            guest.namespace, db.ipv4, PORT
        )

    with Server(db.namespace, [PORT]):
        assert in_force()
        lab.agent.kill()
        lab.api.stop(reset=True)
        lab.agent.launch()
        lab.agent.wait(lambda: "source kubernetes" in problems(lab), "status to say so", 60)
        assert lab.api.url in problems(lab)
        assert not lab.agent.status().ready
        assert in_force()

        # Alive, so that nobody restarts it for what is not its fault; but not ready.
        assert probe(lab, "/healthz") == (200, "ok\n")
        status, text = probe(lab, "/readyz")
        assert status == 503 and lab.api.url in text
        assert lab.api.url in lab.agent.cli("status", check=False).stdout

        # A pod that comes is refused soon, with the reason, and leaves nothing behind.
        begun = time.monotonic()
        said = refusal(lab, "ADD", "late", str(late.path))
        assert '"code": 11' in said.replace('":11', '": 11') and lab.api.url in said
        assert time.monotonic() - begun < 5
        assert "eth0" not in late.command(["ip", "-o", "link"])
        assert lab.api.url in refusal(lab, "STATUS", "", "")
        path = str(web.namespace.path)
        assert lab.api.url in refusal(lab, "CHECK", "web", path, prevResult=web.result)

        # Pods go, however many want to come.
        with ThreadPoolExecutor(WORKERS) as pool:
            refused = [
                pool.submit(refusal, lab, "ADD", f"late-{number}", str(late.path))
                for number in range(WORKERS)
            ]
            begun = time.monotonic()
            lab.delete_pod(guest, manifest=False)
            assert time.monotonic() - begun < 5
            assert all(lab.api.url in one.result() for one in refused)
        lab.cni("DEL", guest.container_id, "")  # again, which is no error
        assert guest.host_device not in lab.node_namespace.command(["ip", "-o", "link"])
        assert ask_udp(web.namespace, db.ipv4, PORT)

        # The server is back: the former agent's datapath is taken over, without a gap.
        lab.api.start()
        lab.agent.wait_ready()
        lab.agent.wait(lambda: not problems(lab), "the trouble to be over", 60)
        assert probe(lab, "/readyz") == (200, "ok\n")
        assert ask_udp(web.namespace, db.ipv4, PORT)
        stranger = lab.add_pod("shop", "stranger", {"app": "guest"})
        assert not ask_udp(stranger.namespace, db.ipv4, PORT)
        pods = {f"{one.namespace}/{one.pod}" for one in lab.agent.endpoints()}
        assert pods == {"shop/db", "shop/web", "shop/stranger"}


def test_a_nodes_very_first_agent_waits_for_the_api_server() -> None:
    with Lab(api=True, config=CONFIG, start=False) as lab:
        lab.api.stop(reset=True)
        lab.agent.launch()
        lab.agent.wait(lambda: lab.api.url in probe(lab, "/readyz")[1], "the reason", 60)
        assert probe(lab, "/readyz")[0] == 503
        status, text = probe(lab, "/healthz")
        assert status == 200 and "pod CIDRs" in text
        lab.api.start()
        lab.agent.wait_ready()
        lab.agent.wait(lambda: probe(lab, "/readyz") == (200, "ok\n"), "the probe to say so")
        assert probe(lab, "/healthz") == (200, "ok\n")
