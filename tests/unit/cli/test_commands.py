# SPDX-License-Identifier: Apache-2.0
"""Every command that asks the agent, as a user runs it."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cleanup import only_agent
from agent.cli.root import cli
from agent.core.flow import FlowFilter, FlowsLost, FlowType, Verdict
from agent.core.views import (
    CheckReport,
    ExplainQuery,
    InvalidQuery,
    KernelVerdict,
    NotFound,
    NotReady,
)
from agent.daemon import _note
from agent.rpc.server import AgentServer, SocketError
from agent.telemetry.progress import Progress
from tests.unit.cli.fake import DIFFERENCE, EXPLANATION, STATUS, Agent, FakeView, flow

ASKING = [
    ("status",),
    ("endpoint", "list"),
    ("endpoint", "get", "7"),
    ("identity", "list"),
    ("identity", "get", "1"),
    ("policy", "get"),
    ("policy", "selectors"),
    ("policy", "explain", "--from", "a/b", "--to", "c/d", "--port", "80/tcp"),
    ("policy", "check"),
    ("monitor",),
]


@pytest.mark.parametrize("command", ASKING)
@pytest.mark.parametrize("output", ["table", "json"])
def test_without_agent(command: tuple[str, ...], output: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, [*command, "-o", output, "--run-dir", str(tmp_path)])
    assert result.exit_code == 1
    if command == ("status",) and output == "json":
        assert json.loads(result.stdout)["ready"] is False
    else:
        assert f"no agent listens on {tmp_path}/agent.sock" in result.stderr
        assert "--run-dir" in result.stderr
        assert not result.stdout


@pytest.mark.parametrize("said", ["", "waiting for this node's pod CIDRs: no such node"])
def test_an_agent_that_does_not_listen_yet(said: str, tmp_path: Path) -> None:
    """It says what for; once it has ended, nothing that it said counts."""
    progress = Progress(note=partial(_note, tmp_path))
    with only_agent(tmp_path, tmp_path):
        progress.waits(said)
        result = CliRunner().invoke(cli, ["status", "--run-dir", str(tmp_path)])
        assert result.exit_code == 1
        text = f"the agent of {tmp_path} does not listen yet: {said or 'it is starting'}"
        assert text in result.stderr
        as_json = CliRunner().invoke(cli, ["status", "-o", "json", "--run-dir", str(tmp_path)])
        assert json.loads(as_json.stdout) == {"ready": False, "error": text}
    result = CliRunner().invoke(cli, ["status", "--run-dir", str(tmp_path)])
    assert f"no agent listens on {tmp_path}/agent.sock" in result.stderr


@pytest.mark.parametrize("command", ASKING)
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotFound("no such thing: try X"), "no such thing: try X"),
        (InvalidQuery("from: 10.0.0.1/24 has host bits"), "from: 10.0.0.1/24 has host bits"),
        (NotReady("sources have not delivered yet"), "sources have not delivered yet"),
        (RuntimeError("internal detail"), "RuntimeError"),
    ],
)
def test_errors_of_the_agent(
    agent: Agent, command: tuple[str, ...], error: Exception, text: str
) -> None:
    agent.view.error = error
    result = agent.run(*command)
    assert result.exit_code == 1
    assert text in result.stderr
    assert "Traceback" not in result.output
    assert "internal detail" not in result.output
    agent.view.error = None
    assert agent.run("endpoint", "list").exit_code == 0


@pytest.mark.parametrize("command", ASKING)
def test_json_is_json(agent: Agent, command: tuple[str, ...]) -> None:
    agent.view.items = [[flow(FlowType.DROP, Verdict.DROPPED)]]
    assert agent.json(*command)


def test_status(agent: Agent) -> None:
    result = agent.run("status")
    assert result.exit_code == 0
    assert "ready, version 0.1, pid 4711, up 1h02m03s" in result.stdout
    assert "policy default/web: table would overflow" in result.stdout
    assert "pods: clsact, uplinks: tcx (" in result.stdout
    assert "18446744073709551614" not in result.stdout
    assert "fd00::/64" in agent.run("status", "--verbose").stdout
    answer = agent.json("status")
    assert answer["policy_epoch"] == 2**40
    assert answer["maps"][0] == {"name": "policy", "entries": 512, "capacity": 1024, "group": ""}

    agent.view.answer_status = replace(STATUS, ready=False)
    assert agent.run("status").exit_code == 1
    assert agent.run("status", "-o", "json").exit_code == 1


def test_endpoints(agent: Agent) -> None:
    assert "default/web" in agent.run("endpoint", "list").stdout
    assert agent.json("endpoint", "list")[0]["status"] == "done"
    assert agent.json("endpoint", "get", "default/web")["ingress_policies"] == ["default/allow-web"]
    missing = agent.run("endpoint", "get", "default/none")
    assert missing.exit_code == 1
    assert "no endpoint 'default/none'" in missing.stderr


def test_identities(agent: Agent) -> None:
    assert [item["number"] for item in agent.json("identity", "list")] == [1, 1234]
    assert agent.json("identity", "get", "1234")["labels"] == ["k8s:app=web", "k8s:tier=front"]
    missing = agent.run("identity", "get", "99")
    assert missing.exit_code == 1
    assert "identity 99 is not known" in missing.stderr


def test_policies(agent: Agent) -> None:
    text = agent.run("policy", "get").stdout
    assert "failed: map policy is full" in text
    assert "/m/bad.yaml" in text
    assert "spec.ingress[0].ports[0]" in text
    assert "last good state" in text
    answer = agent.json("policy", "get")
    assert answer["policies"][0]["spec"] == {"podSelector": {}}
    assert answer["rejected"][0]["document"] == 2
    assert agent.json("policy", "get", "default/allow-web")["status"] == "failed"
    assert agent.run("policy", "get", "default/nope").exit_code == 1
    assert agent.json("policy", "selectors")[0]["identities"] == [1234]


def explain(agent: Agent, port: str = "80/tcp") -> Any:
    return agent.run(
        "policy", "explain", "--from", "default/client", "--to", "default/web", "--port", port
    )


def test_explain(agent: Agent) -> None:
    result = explain(agent)
    assert result.exit_code == 0
    egress, ingress = re.split("^Ingress", result.stdout, flags=re.MULTILINE)
    assert "80/TCP: DENIED" in egress
    assert "ALLOWED by no policy" in egress
    assert "DENIED by default deny" in ingress
    assert "nearest:  default/allow-web, ingress rule 0: port 80/TCP is not among 443" in ingress
    assert "kernel:   DENIED by default deny" in ingress
    assert "DIFFER" not in result.stdout
    assert agent.view.queries == [ExplainQuery("default/client", "default/web", 6, 80)]


def test_explain_when_kernel_differs(agent: Agent) -> None:
    ingress = replace(
        EXPLANATION.ingress,
        kernel=KernelVerdict(True, True, "default/old"),
        agrees=False,
    )
    agent.view.explanation = replace(EXPLANATION, ingress=ingress)
    result = explain(agent)
    assert result.exit_code == 1
    assert "kernel:   ALLOWED by default/old" in result.stdout
    assert result.stdout.count("KERNEL AND MODEL DIFFER") == 1


def test_explain_where_nothing_is_decided_here(agent: Agent) -> None:
    silent = replace(
        EXPLANATION.egress, evaluated=False, note="203.0.113.1 is no pod of this node",
        kernel=KernelVerdict(False),
    )  # fmt: skip
    agent.view.explanation = replace(EXPLANATION, egress=silent)
    text = explain(agent).stdout
    assert "Egress    203.0.113.1 is no pod of this node" in text


@pytest.mark.parametrize(
    ("text", "port", "protocol"),
    [("80", 80, 6), ("53/udp", 53, 17), ("9/SCTP", 9, 132), ("icmp", 0, 1), ("icmpv6", 0, 58)],
)
def test_ports(agent: Agent, text: str, port: int, protocol: int) -> None:
    assert explain(agent, text).exit_code == 0
    (query,) = agent.view.queries
    assert isinstance(query, ExplainQuery)
    assert (query.port, query.protocol) == (port, protocol)


@pytest.mark.parametrize(
    "text", ["0/tcp", "65536/udp", "80/xyz", "/tcp", "8/icmp", "٣", "-1", "tcp"]
)
def test_bad_ports(agent: Agent, text: str) -> None:
    assert explain(agent, text).exit_code == 2
    assert not agent.view.queries


def test_check(agent: Agent) -> None:
    result = agent.run("policy", "check")
    assert result.exit_code == 0
    assert "400 intervals compared: no difference" in result.stdout
    agent.view.report = CheckReport(2, 3, 400, 5, (DIFFERENCE,))
    result = agent.run("policy", "check", "--repair")
    assert result.exit_code == 1
    assert "80-81" in result.stdout
    assert "and 4 more" in result.stdout
    assert agent.view.queries == [False, True]
    assert agent.run("policy", "check", "-o", "json").exit_code == 1


def test_monitor_lines(agent: Agent) -> None:
    agent.view.items = [
        [flow(FlowType.DROP, Verdict.DROPPED), FlowsLost("PERF_EVENT_RING_BUFFER", 3)],
        [
            flow(FlowType.POLICY_VERDICT, Verdict.FORWARDED, rule=256),
            flow(FlowType.TRACE, Verdict.FORWARDED, reply=True, source_identity=1),
        ],
    ]
    result = agent.run("monitor")
    assert result.exit_code == 0
    ends = "default/client:40000 (ID:1235) -> default/web:80 (ID:1234)"
    drop, lost, verdict, trace = (re.sub(r"^\S+ \S+ \S+\.123: ", "", line)
                                  for line in result.stdout.splitlines())  # fmt: skip
    assert drop == f"{ends} Policy denied INGRESS DROPPED by default deny (TCP, flags SYN)"
    assert lost == "EVENTS LOST: PERF_EVENT_RING_BUFFER 3"
    assert verdict == f"{ends} policy-verdict INGRESS ALLOWED by default/allow-web (TCP, flags SYN)"
    assert trace.startswith("default/web:80 (ID:1234) <- default/client:40000 (host) to-endpoint")


def test_monitor_request_and_json(agent: Agent) -> None:
    agent.view.items = [[flow(FlowType.POLICY_VERDICT, Verdict.FORWARDED, rule=256)]]
    result = agent.run(
        "monitor", "-t", "drop", "-t", "policy-verdict", "--pod", "default/web",
        "--verdict", "denied", "--last", "5", "--no-follow", "-o", "json",
    )  # fmt: skip
    (line,) = result.stdout.splitlines()
    seen = json.loads(line)["flow"]
    assert seen["time_unix_ns"] == 1_700_000_000_123_456_789
    assert seen["type"] == "policy-verdict"
    assert seen["policy"]["name"] == "allow-web"
    assert seen["source"]["pod"] == "client"
    wanted = FlowFilter(
        frozenset({FlowType.DROP, FlowType.POLICY_VERDICT}),
        frozenset({Verdict.DROPPED}),
        ("default/web",),
    )
    assert agent.view.queries == [(wanted, 5, False)]


def test_names_cannot_control_the_terminal(agent: Agent) -> None:
    agent.view.answer_status = replace(STATUS, node_name="\x1b[31mred\nforged: line")
    text = agent.run("status").stdout
    assert "\x1b" not in text
    assert "\nforged" not in text


def test_bugtool(agent: Agent, tmp_path: Path) -> None:
    archive = tmp_path / "bug.tar.gz"
    log = tmp_path / "agent.log"
    log.write_text("password: hunter2\nAuthorization: Bearer abcdefghijklmnop\nall is well\n")
    result = agent.run("bugtool", "-o", str(archive), "--log", str(log), "--bpffs-dir", "/none")
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    with tarfile.open(archive) as tar:
        files = {
            member.name.split("/", 1)[1]: tar.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in tar
        }
    assert json.loads(files["agent/status.json"])["node_name"] == "node-a"
    assert json.loads(files["agent/dump/state/store.json"]) == {"apiToken": "[redacted]"}
    assert len(files["agent/dump/big.bin"]) == 3_000_000
    assert "all is well" in files["logs/agent.log"]
    assert "Linux" in files["host/uname.txt"]
    assert "net.ipv4.ip_forward" in files["host/sysctls.txt"]
    assert "maps/policy.json: cannot read map" in files["errors.txt"]
    assert not any("hunter2" in text or "abcdefghijklmnop" in text for text in files.values())


def test_bugtool_without_agent(tmp_path: Path) -> None:
    archive = tmp_path / "bug.tar.gz"
    result = CliRunner().invoke(
        cli, ["bugtool", "-o", str(archive), "--run-dir", str(tmp_path), "--bpffs-dir", "/none"]
    )
    assert result.exit_code == 0, result.output
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames()}
    assert {"errors.txt", "host/uname.txt", "host/sysctls.txt"} <= names


def test_socket_is_private_and_replaced(tmp_path: Path) -> None:
    first = AgentServer(FakeView(), tmp_path)
    first.start()
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["agent.sock"]
    with pytest.raises(SocketError, match="another agent is listening"):
        AgentServer(FakeView(), tmp_path).start()
    first.stop()
    assert not list(tmp_path.iterdir())
    # What an agent that was killed leaves behind.
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(first.path))
    second = AgentServer(FakeView(), tmp_path)
    second.start()
    assert CliRunner().invoke(cli, ["status", "--run-dir", str(tmp_path)]).exit_code == 0
    second.stop()
    with pytest.raises(SocketError, match="shorten run_dir"):
        long = tmp_path / ("x" * 100)
        long.mkdir()
        AgentServer(FakeView(), long).start()


def test_version_imports_little() -> None:
    code = (
        "import sys; sys.argv=['bristle','--version']\n"
        "import agent.cli\n"
        "try: agent.cli.main()\n"
        "except SystemExit: pass\n"
        "bad={'grpc','google','numpy','pyroute2','prometheus_client','yaml','kubernetes'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"bristle \S+\n\[\]\n", done.stdout)


def test_help_lists_all_commands() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name in ("agent", "bpf", "bugtool", "cleanup", "doctor", "endpoint", "monitor", "policy"):
        assert f"  {name} " in result.stdout
