# SPDX-License-Identifier: Apache-2.0
"""Runs the agent from an unpacked image with runc, as the DaemonSet of `bristle install` asks.

    python -m tools.image_run --root ROOTFS --work FOLDER

The "host" is a process tree of its own with its own network, mounts and cgroup2 mount, so nothing
of the machine is touched, and all of it ends with that tree, also when it is killed. In it: the
init containers, the agent in standalone mode, pods wired through the relay that the init step
copied out, ping, policy, an agent that is killed and comes back, and the clean-up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from agent.kernel.bpffs import is_bpffs
from bench.lab import manifests
from bench.lab.manifests import ManifestFolder
from bench.lab.netns import LabError, Namespace, execute
from bench.lab.station import OUTSIDE4, PEER_SYSCTLS, UPLINK, Station, wire_uplink
from tools.oci_bundle import Image, runtime_config

ROOT = Path(__file__).resolve().parents[1]
SECCOMP = Path("/usr/share/containers/seccomp.json")
BPFFS = Path("/sys/fs/bpf")
CGROUPS = Path("/sys/fs/cgroup")
NODE = "node-1"
POD_CIDR = "10.244.1.0/24"
OTHER = '{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "other"}]}'
CONFLIST = "05-bristle.conflist"
HEALTH = "127.0.0.1:9879"
READY_SECONDS = 90.0


class Failure(Exception):
    """Something is not as it has to be; the message says what, and shows the container's log."""


def main() -> int:
    """Exit status 1 if anything is not as it has to be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="the image's file system")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder of the caller's")
    parser.add_argument("--without", metavar="CAPABILITY", help="take one from the agent")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is None:
        return _outside(sys.argv[1:])
    try:
        with Host(options.root, options.work, options.inside, options.without) as host:
            check(host)
    except (Failure, LabError) as error:
        print(f"image: FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def _outside(arguments: list[str]) -> int:
    """The same again as process 1 of namespaces of its own, which die with it."""
    prefix = f"bristle-t-{os.getpid()}-image"
    command = [
        "setpriv", "--pdeathsig", "KILL", "--",
        "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
        sys.executable, "-m", "tools.image_run",
        *arguments, "--inside", prefix,
    ]  # fmt: skip
    try:
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    finally:
        _remove_cgroups(prefix)


def _remove_cgroups(prefix: str) -> None:
    # The hierarchy is one for all mounts of it, also for that of the tree that has ended.
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            for folder in sorted(Path(line.split()[1]).glob(f"{prefix}/**/"), reverse=True):
                with suppress(OSError):
                    folder.rmdir()


class Host:
    """The node: its mounts, network and containers."""

    def __init__(self, root: Path, work: Path, prefix: str, without: str | None) -> None:
        self.image = Image(root, *_image_settings())
        self.prefix = prefix
        self.folder = work / "node"
        self.manifests = ManifestFolder(self.folder / "config/manifests")
        self.pods: dict[str, Station] = {}
        self._work = work
        self.lacking = _lacking_here() | ({without} if without else set())
        self._daemon_set = _daemon_set()
        self._logs: dict[str, Path] = {}
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Host:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        # Namespaces and runc's state go with this tree; sysfs shows this network namespace.
        execute(["mount", "-t", "tmpfs", "tmpfs", "/run"])
        execute(["mount", "-t", "sysfs", "sysfs", "/sys"])
        execute(["mount", "-t", "cgroup2", "cgroup2", str(CGROUPS)])
        for name in ("config/manifests", "state", "tmp", "bin", "conf"):
            (self.folder / name).mkdir(parents=True)
        Path("/run/bristle").mkdir()
        execute(["ip", "link", "set", "lo", "up"])
        outside = Namespace("outside")
        node = _own_namespace()
        wire_uplink(node, outside, [POD_CIDR], 1500)
        # As on a node that forwards nothing: the agent has to set it, and to take it back.
        node.sysctl({"ipv4.ip_forward": 0, f"ipv4.conf.{UPLINK}.forwarding": 0})
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.poll() is None:
                self.runc("kill", self._id("agent"), "KILL", check=False)
                child.wait()
        for name in self._logs:
            self.runc("delete", "--force", self._id(name), check=False)

    # ---- containers --------------------------------------------------------------------------

    def configure(self, text: str) -> None:
        """The ConfigMap, with a standalone agent's configuration instead of a cluster's."""
        (self.folder / "config/agent.yaml").write_text(text)

    def run(self, name: str, *, cleanup: bool = False) -> str:
        """An init container, to its end; its output. Raises Failure if it fails."""
        container = self._container(name, cleanup)
        log = self._prepare(name, container)
        with log.open("wb") as output:
            done = subprocess.run(
                self._runc(name), stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                check=False,
            )  # fmt: skip
        if done.returncode:
            raise Failure(f"container {name}: status {done.returncode}\n{self.log(name)}")
        return log.read_text()

    def start(self) -> None:
        """The agent's container, in the background."""
        log = self._prepare("agent", self._container("agent", cleanup=False))
        with log.open("ab") as output:
            self._children.append(
                subprocess.Popen(
                    self._runc("agent"), stdout=output, stderr=output, stdin=subprocess.DEVNULL
                )
            )

    def kill(self, signal_name: str) -> None:
        """Ends the agent, and waits for it."""
        self.runc("kill", self._id("agent"), signal_name)
        self._children[-1].wait(60)

    def agent(self, *arguments: str, check: bool = True) -> str:
        """A bristle command in the agent's container, as kubectl exec would run it."""
        command = ["exec", self._id("agent"), *self.image.entrypoint, *arguments]
        return self.runc(*command, check=check)

    def agent_pid(self) -> int:
        """Process id of the agent, on the node."""
        return int(json.loads(self.runc("state", self._id("agent")))["pid"])

    def wait_ready(self) -> float:
        """Seconds until the agent says that it is ready. Raises Failure."""
        began = time.monotonic()

        def ready() -> bool:
            if self._children[-1].poll() is not None:
                raise Failure(f"the agent has ended\n{self.log('agent')}")
            with suppress(Failure):
                self.agent("status")
                return True
            return False

        self.wait(ready, "the agent to be ready", READY_SECONDS)
        return time.monotonic() - began

    def wait(self, ready: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        """Asks until it is so. Raises Failure."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise Failure(f"waited {seconds:g} s for {what}\n{self.log('agent')}")
            time.sleep(0.1)

    def log(self, name: str) -> str:
        """The end of a container's output."""
        path = self._logs.get(name)
        text = path.read_text(errors="replace") if path is not None and path.exists() else ""
        return "\n".join(line[:300] for line in text.splitlines()[-30:])

    def runc(self, *arguments: str, check: bool = True) -> str:
        """Output of a runc command. Raises Failure."""
        done = subprocess.run(["runc", *arguments], capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise Failure(f"runc {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _container(self, name: str, cleanup: bool) -> dict[str, Any]:
        pod = self._daemon_set if not cleanup else _daemon_set("--set", "cleanup=true")
        for container in [*pod["initContainers"], *pod["containers"]]:
            if container["name"] == name:
                return dict(container)
        raise Failure(f"the DaemonSet has no container {name}")

    def _prepare(self, name: str, container: dict[str, Any]) -> Path:
        self.runc("delete", "--force", self._id(name), check=False)
        bundle = self._work / f"bundle-{name}"
        bundle.mkdir(exist_ok=True)
        wanted = container["securityContext"]["capabilities"].get("add", [])
        lacking = self.lacking if name == "agent" else _lacking_here()
        if lacking & set(wanted):
            say(f"{name} runs without {', '.join(sorted(lacking))}")
            wanted[:] = [right for right in wanted if right not in lacking]
        config = runtime_config(
            container,
            self.image,
            volumes={
                "config": self.folder / "config",
                "tmp": self.folder / "tmp",
                "run": Path("/run/bristle"),
                "state": self.folder / "state",
                "bpffs": BPFFS,
                "cgroup": CGROUPS,
                "host-proc": Path("/proc"),
                "sysctls": Path("/proc/sys/net"),
                "cni-bin": self.folder / "bin",
                "cni-conf": self.folder / "conf",
            },
            fields={"spec.nodeName": NODE, "metadata.namespace": "kube-system"},
            cgroup=f"/{self.prefix}/{name}",
            seccomp=SECCOMP if SECCOMP.exists() else None,
        )
        (bundle / "config.json").write_text(json.dumps(config, indent=1))
        self._logs[name] = self._work / f"{name}.log"
        return self._logs[name]

    def _runc(self, name: str) -> list[str]:
        return ["runc", "run", "--bundle", str(self._work / f"bundle-{name}"), self._id(name)]

    def _id(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    # ---- pods --------------------------------------------------------------------------------

    def add_pod(self, name: str) -> float:
        """A pod with the label app=NAME, by the relay in the CNI folder; milliseconds of ADD."""
        pod = manifests.pod("shop", name, {"app": name})
        self.manifests.put(f"pod-{name}", [manifests.namespace("shop"), pod])
        namespace = Namespace(name)
        namespace.sysctl(PEER_SYSCTLS)
        began = time.monotonic()
        result = self.cni("ADD", name)
        took = 1000 * (time.monotonic() - began)
        address = str(result["ips"][0]["address"]).partition("/")[0]
        self.pods[name] = Station(name, namespace, address, "")
        return took

    def cni(self, command: str, name: str) -> dict[str, Any]:
        """What a runtime does with the relay. Raises Failure."""
        config = {"cniVersion": "1.0.0", "name": "bristle", "type": "bristle-cni"}
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"{self.prefix}-{name}",
            "CNI_NETNS": f"/run/netns/{name}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.folder / "bin"),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}",
        }
        relay = self.folder / "bin/bristle-cni"
        done = subprocess.run(
            [str(relay)], input=json.dumps(config), env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failure(f"CNI {command} of {name}: {done.stdout}\n{self.log('agent')}")
        return dict(json.loads(done.stdout)) if done.stdout.strip() else {}

    def pings(self, source: str, target: str) -> bool:
        """Whether one of three pings is answered."""
        address = self.pods[target].ipv4 if target in self.pods else target
        command = ["ip", "netns", "exec", source, "ping", "-q", "-c", "3", "-i", "0.2", "-W", "1",
                   address]  # fmt: skip
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def check(host: Host) -> None:
    """The whole story; each line is something that was tried. Raises Failure."""
    assert_that(not is_bpffs(BPFFS), "the node has no BPF file system before the init step")
    say(host.run("bpffs").strip())
    assert_that(is_bpffs(BPFFS), "the init step mounted a BPF file system on the node")
    assert_that("is on a BPF" in host.run("bpffs"), "a second time it mounts nothing")
    assert_that("installed" in host.run("relay"), "the init step installed the relay")
    assert_that("up to date" in host.run("relay"), "a second time it changes nothing")
    found = sorted(path.name for path in (host.folder / "bin").iterdir())
    assert_that(found == ["bristle-cni"], "the CNI folder holds the relay and nothing else")

    host.configure(_standalone())
    (host.folder / "conf/10-other.conflist").write_text(OTHER)
    host.start()
    say(f"the agent is ready after {host.wait_ready():.1f} s (compiling its programs)")
    host.wait(lambda: answers("/readyz") and answers("/healthz"), "the probes to be answered")
    say("ok: /readyz and /healthz are answered as the kubelet asks")
    host.wait((host.folder / "conf" / CONFLIST).exists, "the runtime's file")
    assert_that(
        not (host.folder / "conf/10-other.conflist").exists(), "the other network's is aside"
    )
    rights = _rights(str(host.agent_pid()))
    asked = _asked_rights() - host.lacking
    assert_that(rights == asked, f"it has these rights and no others: {', '.join(sorted(asked))}")
    filtered = SECCOMP.exists()
    status = Path(f"/proc/{host.agent_pid()}/status").read_text()
    assert_that("Seccomp:\t2" in status or not filtered, "system calls are filtered, as by default")
    assert_that(_forwarding() == "1", "it could set what it needs of the uplink")
    root = Path(f"/proc/{host.agent_pid()}/root")
    assert_that(_read_only(root / "opt/bristle"), "its root file system is read-only")
    say(f"resident: {_resident_mib(host.agent_pid())} MiB")

    for name in ("client", "friend", "server"):
        took = host.add_pod(name)
    say(f"three pods wired through the relay; the last ADD took {took:.1f} ms")
    assert_that(host.pings("client", "server"), "pods ping each other")
    assert_that(host.pings("client", OUTSIDE4), "pods ping what is behind the uplink")
    host.manifests.put("policy", [_policy()])
    host.wait(lambda: not host.pings("client", "server"), "the policy to be in force")
    assert_that(host.pings("friend", "server"), "the policy lets in whom it names")
    assert_that(not host.pings("client", "server"), "and nobody else")
    listing = json.loads(host.agent("endpoint", "list", "-o", "json"))
    assert_that(len(listing) == 3, "bristle endpoint list, run in the container, knows all pods")

    host.kill("KILL")
    assert_that(host.pings("friend", "server"), "with the agent killed packets go on")
    assert_that(not host.pings("client", "server"), "and policy stays in force")
    host.start()
    say(f"a new container is ready after {host.wait_ready():.1f} s")
    assert_that(host.pings("friend", "server"), "it took over what was there")
    assert_that(not host.pings("client", "server"), "also the policy")
    host.cni("DEL", "friend")
    host.kill("TERM")

    said = host.run("cleanup", cleanup=True)
    assert_that("bri" in said, "the clean-up removed pods' devices")
    assert_that("removed" in host.run("relay", cleanup=True), "and the relay")
    left = [path.name for path in (host.folder / "conf").iterdir()]
    assert_that(left == ["10-other.conflist"], "and the runtime's file; the other one is back")
    devices = [path.name for path in Path("/sys/class/net").iterdir()]
    assert_that(sorted(devices) == ["lo", UPLINK], "no device is left")
    assert_that(not (BPFFS / "bristle").exists(), "no pin is left")
    assert_that(_forwarding() == "0", "and the uplink's settings are as they were")


def answers(path: str) -> bool:
    """Whether the agent's probes say 200."""
    with suppress(OSError), urllib.request.urlopen(f"http://{HEALTH}{path}", timeout=2) as reply:
        return bool(reply.status == 200)
    return False


def say(text: str) -> None:
    """A line of the report."""
    print(f"image: {text}", flush=True)


def assert_that(holds: bool, what: str) -> None:
    """A line of the report, or Failure."""
    if not holds:
        raise Failure(f"not so: {what}")
    say(f"ok: {what}")


def _forwarding() -> str:
    return Path(f"/proc/sys/net/ipv4/conf/{UPLINK}/forwarding").read_text().strip()


def _policy() -> dict[str, Any]:
    friends = {"podSelector": {"matchLabels": {"app": "friend"}}}
    return manifests.policy(
        "shop",
        "server-in",
        {
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [friends]}],
        },
    )


def _standalone() -> str:
    return yaml.safe_dump(
        {
            "pod_cidrs": [POD_CIDR],
            "devices": [UPLINK],
            "source": {"manifests": "/etc/bristle/manifests"},
            "cgroup_root": "/host/sys/fs/cgroup",
            "cni": {"conf_dir": "/host/etc/cni/net.d", "exclusive": True},
            "health": {"address": HEALTH},
        }
    )


def _daemon_set(*arguments: str) -> dict[str, Any]:
    """The pod of the DaemonSet that `bristle install` prints."""
    command = [str(Path(sys.prefix, "bin/bristle")), "install", "--no-crds", *arguments]
    for document in yaml.safe_load_all(execute(command)):
        if document["kind"] == "DaemonSet":
            return dict(document["spec"]["template"]["spec"])
    raise Failure("bristle install prints no DaemonSet")


def _image_settings() -> tuple[list[str], list[str]]:
    """Entry point and environment that deploy/Dockerfile gives the image."""
    text = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
    entrypoint = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.M)
    (environment,) = re.findall(r"^ENV (.*)$", text, re.M)
    return list(json.loads(entrypoint[-1])), environment.split()


def _asked_rights() -> set[str]:
    (agent,) = _daemon_set()["containers"]
    return set(agent["securityContext"]["capabilities"]["add"])


def _lacking_here() -> set[str]:
    """Capabilities that this process has not, and so cannot give to a container."""
    return _asked_rights() - _rights("self")


def _rights(pid: str) -> set[str]:
    """Capabilities of a process; effective, permitted and bounding ones must be the same."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = {kind: re.findall(rf"^{kind}:\t(\w+)$", status, re.M)[0]
             for kind in ("CapEff", "CapPrm", "CapBnd")}  # fmt: skip
    if len(set(masks.values())) != 1:
        raise Failure(f"capabilities differ: {masks}")
    names = {12: "NET_ADMIN", 18: "SYS_CHROOT", 19: "SYS_PTRACE", 21: "SYS_ADMIN",
             24: "SYS_RESOURCE", 38: "PERFMON", 39: "BPF"}  # fmt: skip
    mask = int(masks["CapEff"], 16)
    return {names.get(bit, str(bit)) for bit in range(64) if mask >> bit & 1}


def _read_only(folder: Path) -> bool:
    try:
        (folder / "written").touch()
    except OSError:
        return True
    return False


def _resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.M)[0]) // 1024


def _own_namespace() -> Any:
    """This process's network namespace, in the form that wire_uplink takes."""

    class Own:
        name = "node"

        @staticmethod
        def ip(*commands: str) -> None:
            execute(["ip", "-batch", "-"], text="\n".join(commands) + "\n")

        @staticmethod
        def sysctl(settings: dict[str, str | int]) -> None:
            for name, value in settings.items():
                Path("/proc/sys/net", *name.split(".")).write_text(str(value))

    return Own


if __name__ == "__main__":
    sys.exit(main())
