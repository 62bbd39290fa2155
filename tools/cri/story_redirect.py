# SPDX-License-Identifier: Apache-2.0
"""Socket redirect between containers that the runtime put into their cgroups."""

from __future__ import annotations

from bench.lab import manifests
from tools.cri.client import Sandbox
from tools.cri.image import NAME as IMAGE
from tools.cri.node import Node
from tools.cri.report import Report
from tools.cri.story_failures import remove
from tools.cri.story_pods import Pod

MESSAGES = 200

_ECHO = """
import asyncio
async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, None, 8080)
    await server.serve_forever()
asyncio.run(main())
"""
_TALK = """
import asyncio, sys
async def talk(address, messages):
    reader, writer = await asyncio.open_connection(address, 8080)
    for number in range(messages):
        sent = b"%d " % number * 20
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
    writer.close()
async def main():
    for address in sys.argv[2:]:
        await talk(address, 1)
        await talk(address, int(sys.argv[1]))
asyncio.run(main())
print("done")
"""


def tell(node: Node, report: Report) -> None:
    """Leaves nothing but an agent that runs."""
    node.restart_agent(socket_redirect={"enabled": True}, cgroup_root=str(node.cgroup_root))

    def decided() -> str:
        found = node.agent.status().socket_redirect
        return "" if found.mode == "off" and "running" in found.detail else str(found.mode)

    mode = node.wait(decided, "the self-test of socket redirect", 60)
    if mode == "off":
        report.say(f"no socket redirect here: {node.agent.status().socket_redirect.detail}")
    else:
        server = _run(node, "echo", ["/usr/bin/python3", "-c", _ECHO])
        client = _run(node, "talk", ["/pause"])
        command = ["/usr/bin/python3", "-c", _TALK, str(MESSAGES), *server.addresses]

        def talked() -> bool:
            status, said = node.cri.execute(client.container, command)
            return status == 0 and said.strip() == "done"

        node.wait(talked, "the server to listen")
        before = node.agent.metric("bristle_socket_redirect_messages_total")
        report.check(talked(), "with socket redirect containers get what they send each other")
        moved = node.agent.metric("bristle_socket_redirect_messages_total") - before
        wanted = 2 * 2 * MESSAGES
        report.check_only(moved >= 0.9 * wanted, "it goes from socket to socket", moved)
        report.note("and it goes from socket to socket", f"{moved:.0f} of {wanted}")
        remove(node, report, "nothing is left of redirected pods")
    node.restart_agent()


def _run(node: Node, name: str, command: list[str]) -> Pod:
    sandbox = Sandbox(name, f"{node.cgroup}/burstable", labels={"app": name})
    annotations = {"bristle.io/socket-redirect": "on"}
    pod = manifests.pod("shop", name, sandbox.labels, annotations=annotations)
    node.manifests.put(f"pod-{name}", [pod])
    identity = node.cri.run(sandbox)
    container = node.cri.start(identity, sandbox, IMAGE, command)
    return Pod(sandbox, identity, container, tuple(node.cri.addresses(identity)))
