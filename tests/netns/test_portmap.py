# SPDX-License-Identifier: Apache-2.0
"""hostPort with the reference plugin portmap after bristle, by the file that the agent writes.

portmap translates in the node's namespace; whoever asks a node's address and hostPort reaches the
pod, and the pod's ingress policy judges who that is. The lab masquerades, as the chart has it. What
pods of other nodes get is in test_cluster_nat.py: to the node it is a NodePort like any other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.runtime_config import FILE_NAME
from bench.lab import manifests
from bench.lab.agent import RELAY
from bench.lab.netns import LabError
from bench.lab.node import Lab
from bench.lab.runtime import Runtime
from bench.lab.station import NODE4, NODE6, OUTSIDE4, OUTSIDE6, Pod
from bench.lab.talk import Server, ask_tcp, ask_udp
from bench.lab.traffic import TcpFlow, Traffic
from tests.needs import lacking

PLUGINS = Path("/usr/lib/cni")
pytestmark = pytest.mark.kernel

NODE, OUTSIDE = {4: NODE4, 6: NODE6}, {4: OUTSIDE4, 6: OUTSIDE6}
HOST_PORT = 8080


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    if not (PLUGINS / "portmap").exists():
        lacking("containernetworking-plugins is not installed")
    if not all(map(shutil.which, ("iptables", "ip6tables"))):
        lacking("portmap needs iptables, which is not installed")


PORTS = [
    {"hostPort": HOST_PORT, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": HOST_PORT, "containerPort": 80, "protocol": "udp"},
    {"hostPort": 9001, "containerPort": 9001, "protocol": "tcp"},
]
ASK: dict[str, Callable[..., str | None]] = {"tcp": ask_tcp, "udp": ask_udp}


class ChainedLab(Lab):
    """Pods come by every plugin of the agent's own file. The pod two/b has host ports."""

    def __init__(self, folder: Path) -> None:
        self.conf_dir, self.bin_dir = folder / "net.d", folder / "bin"
        self.bin_dir.mkdir()
        self.conflist = self.conf_dir / FILE_NAME
        cni = {
            "conf_dir": str(self.conf_dir),
            "bin_dir": str(self.bin_dir),
            "chaining_mode": "portmap",
        }
        super().__init__(config={"cni": cni, "masquerade": {"enabled": True}})

    def cni(
        self,
        command: str,
        container: str,
        netns: str,
        namespace: str = "",
        name: str = "",
        **config: Any,
    ) -> dict[str, Any]:
        """By the runtime. result: of ADD; valid: of GC."""
        runtime = Runtime(self.node_namespace, self.conflist, [RELAY.parent, self.bin_dir])
        mapped = {"portMappings": PORTS} if (namespace, name) == ("two", "b") else {}
        pod = f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"
        return runtime.call(
            command,
            container,
            netns,
            args=f"IgnoreUnknown=1;{pod}" if name else "",
            capabilities=mapped,
            **config,
        )

    def types(self) -> list[str]:
        """Plugins that the file names."""
        return [one["type"] for one in json.loads(self.conflist.read_bytes())["plugins"]]

    def complaints(self) -> list[str]:
        """What status says of the file."""
        found = self.agent.status().problems
        return [one.message for one in found if one.what == "runtime file"]

    def rules(self) -> list[str]:
        """Rules of translation in the node's namespace that name the pod's port."""
        return [
            line
            for table in ("iptables", "ip6tables")
            for line in self.node_namespace.command([table, "-t", "nat", "-S"]).splitlines()
            if f"{HOST_PORT}" in line
        ]


@pytest.fixture(scope="module")
def lab(private_mounts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChainedLab]:
    """portmap comes when the agent runs already."""
    made = ChainedLab(tmp_path_factory.mktemp("portmap"))
    with made:
        made.agent.wait(made.complaints, "the agent to miss portmap")
        assert made.types() == ["bristle-cni"]
        assert str(made.bin_dir / "portmap") in made.complaints()[0]
        (made.bin_dir / "portmap").symlink_to(PLUGINS / "portmap")
        made.agent.wait(lambda: made.types() == ["bristle-cni", "portmap"], "the chain")
        made.agent.wait(lambda: not made.complaints(), "the agent to be content")
        yield made


@pytest.fixture(scope="module", autouse=True)
def served(lab: ChainedLab, pair: tuple[Pod, Pod]) -> Iterator[None]:
    """two/b answers on port 80, with who asked."""
    with Server(pair[1].namespace):
        yield


def _policy(name: str, *sources: dict[str, Any]) -> dict[str, Any]:
    ports = [{"protocol": protocol, "port": 80} for protocol in ("TCP", "UDP")]
    spec: dict[str, Any] = {"podSelector": {}, "policyTypes": ["Ingress"]}
    if sources:
        spec["ingress"] = [{"from": list(sources), "ports": ports}]
    return manifests.policy("two", name, spec)


def _block(address: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": f"{address}/{128 if ':' in address else 32}"}}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_from_outside(clean_lab: ChainedLab, protocol: str, family: int) -> None:
    """The pod sees the client's own address; the answer comes from the node's."""
    seen = ASK[protocol](clean_lab.outside_namespace, NODE[family], HOST_PORT)
    assert seen == OUTSIDE[family]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_policy_judges_the_client_outside(
    clean_lab: ChainedLab, protocol: str, family: int
) -> None:
    ask, outside = ASK[protocol], clean_lab.outside_namespace
    clean_lab.set_policies([_policy(f"nobody-{protocol}-{family}")])
    assert ask(outside, NODE[family], HOST_PORT) is None
    clean_lab.set_policies([_policy(f"client-{protocol}-{family}", _block(OUTSIDE[family]))])
    assert ask(outside, NODE[family], HOST_PORT) == OUTSIDE[family]
    far = clean_lab.far.address(family)
    assert ask(outside, NODE[family], HOST_PORT, source=far) is None


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_from_another_pod(
    clean_lab: ChainedLab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """By the node's address, and the policy knows the pod by its labels."""
    ask, client = ASK[protocol], pair[0]
    other = clean_lab.add_pod("one", "c", {"app": "c"})
    peer = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}
    clean_lab.set_policies([_policy(f"only-a-{protocol}-{family}", peer)])
    assert ask(client.namespace, NODE[family], HOST_PORT) == client.address(family)
    assert ask(other.namespace, NODE[family], HOST_PORT) is None
    # Straight and by the node at once: neither disturbs the other.
    assert ask(client.namespace, pair[1].address(family)) == client.address(family)
    assert ask(client.namespace, NODE[family], HOST_PORT) == client.address(family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_a_pod_reaches_itself(
    clean_lab: ChainedLab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """Also when nobody else may; portmap masquerades it."""
    clean_lab.set_policies([_policy(f"alone-{protocol}-{family}")])
    assert ASK[protocol](pair[1].namespace, NODE[family], HOST_PORT) == NODE[family]


@pytest.mark.parametrize("protocol", ASK)
@pytest.mark.parametrize("address", [NODE4, NODE6, "127.0.0.1"])
def test_from_the_node(clean_lab: ChainedLab, address: str, protocol: str) -> None:
    """The node may always, by 127.0.0.1 too, as with the kubelet's own port mapping."""
    clean_lab.set_policies([_policy(f"node-{protocol}-{address}".replace(":", "-"))])
    assert ASK[protocol](clean_lab.node_namespace, address, HOST_PORT) in (NODE4, NODE6)


@pytest.mark.parametrize("family", [4, 6])
def test_a_new_deny_ends_a_connection(
    clean_lab: ChainedLab, pair: tuple[Pod, Pod], family: int
) -> None:
    stream = TcpFlow(clean_lab.outside, pair[1], family, through=NODE[family])
    with Traffic([stream]) as traffic:
        traffic.run_for(0.05)
        assert min(stream.received()) > 0
        clean_lab.set_policies([_policy(f"ended-{family}")])
        traffic.drain()
        stopped = stream.received()
        traffic.run_for(0.3)
        assert stream.received() == stopped


def test_check(clean_lab: ChainedLab, pair: tuple[Pod, Pod], tmp_path: Path) -> None:
    """Every plugin looks for its own. Before 1.3 portmap wants the rules of each family in both
    families' tables, so it is shown IPv4 alone."""
    lab, pod = clean_lab, pair[1]
    for name in ("iptables", "nsenter", "setpriv"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    runtime = Runtime(
        lab.node_namespace, lab.conflist, [RELAY.parent, lab.bin_dir], path=str(tmp_path)
    )
    ipv4 = [one for one in pod.result["ips"] if ":" not in one["address"]]

    def check(netns: str) -> None:
        runtime.call(
            "CHECK",
            pod.container_id,
            netns,
            result={**pod.result, "ips": ipv4},
            capabilities={"portMappings": PORTS},
        )

    check(str(pod.namespace.path))
    with pytest.raises(LabError, match="bristle-cni: CNI CHECK"):
        check(str(pair[0].namespace.path))
    chain = next(line.split()[1] for line in lab.rules() if "CNI-DN-" in line)
    rules = ["iptables", "-t", "nat"]
    lab.node_namespace.command([*rules, "-D", chain, "1"])
    with pytest.raises(LabError, match="portmap: CNI CHECK"):
        check(str(pod.namespace.path))


def test_status_and_removal_of_what_is_left(
    clean_lab: ChainedLab, pair: tuple[Pod, Pod], tmp_path: Path
) -> None:
    """These are of CNI 1.1.0, which portmap knows since 1.6: older ones refuse them."""
    lab, client = clean_lab, pair[0]
    whole = json.loads(lab.conflist.read_bytes())
    newer = tmp_path / FILE_NAME
    newer.write_text(json.dumps({**whole, "cniVersion": "1.1.0"}))
    runtime = Runtime(lab.node_namespace, newer, [RELAY.parent, lab.bin_dir])
    left = lab.add_pod("one", "left", {"app": "left"})
    stay = [pod.container_id for pod in lab.pods.values() if pod is not left]
    for command in ("STATUS", "GC"):
        try:
            runtime.call(command, valid=stay)
        except LabError as error:
            assert str(error).startswith(f"portmap: CNI {command}")
    assert {one.pod for one in lab.agent.endpoints()} == {"a", "b"}
    assert ask_udp(lab.outside_namespace, NODE4, HOST_PORT) == OUTSIDE4
    assert ask_udp(client.namespace, NODE4, HOST_PORT) == client.ipv4


def test_removal(clean_lab: ChainedLab, pair: tuple[Pod, Pod]) -> None:
    """DEL takes the rules, and may be repeated. The pod is gone then."""
    lab, pod = clean_lab, pair[1]
    assert lab.rules()
    for _ in range(2):
        lab.cni("DEL", pod.container_id, str(pod.namespace.path), "two", "b", result=pod.result)
    assert lab.rules() == []
    assert ask_tcp(lab.outside_namespace, NODE4, HOST_PORT) is None
    lab.pods.pop(pod.name)


def test_the_plugin_goes_again(clean_lab: ChainedLab) -> None:
    """Pods still come up, without it, and status says so."""
    (clean_lab.bin_dir / "portmap").unlink()
    clean_lab.agent.wait(lambda: clean_lab.types() == ["bristle-cni"], "the plain file")
    clean_lab.agent.wait(clean_lab.complaints, "the agent to miss portmap")
    clean_lab.add_pod("one", "d", {"app": "d"})
