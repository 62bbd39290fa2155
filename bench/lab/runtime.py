# SPDX-License-Identifier: Apache-2.0
"""A network configuration list carried out as container runtimes do it: every plugin in its turn.

Source: CNI spec 1.1.0, section 3; libcni: DEL goes backwards, `prevResult` is the result of the
plugin before (ADD) or of the whole list (CHECK, DEL), and `runtimeConfig` has only those values for
which the plugin names the capability.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.lab.netns import LabError, Namespace

LIST_COMMANDS = ("GC", "STATUS")


class Runtime:
    """Of one node.

    conflist: the file, read again for every call. folders: where plugins are looked for. path: PATH
    of theirs; empty: as here.
    """

    def __init__(
        self, node: Namespace, conflist: Path, folders: Sequence[Path], path: str = ""
    ) -> None:
        self._node = node
        self._path = path or os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        self._conflist = conflist
        self._folders = tuple(folders)

    def call(
        self,
        command: str,
        container: str = "",
        netns: str = "",
        *,
        args: str = "",
        result: Mapping[str, Any] | None = None,
        capabilities: Mapping[str, object] | None = None,
        valid: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """A command by every plugin; the last result of ADD.

        result: what ADD gave, for CHECK and DEL. capabilities: values by name, such as
        "portMappings". valid: GC: containers that stay. Raises LabError with what a plugin said.
        """
        whole = json.loads(self._conflist.read_bytes())
        plugins = whole["plugins"]
        for plugin in reversed(plugins) if command == "DEL" else plugins:
            named = plugin.get("capabilities", {})
            config = {key: value for key, value in plugin.items() if key != "capabilities"}
            config |= {"name": whole["name"], "cniVersion": whole["cniVersion"]}
            given = {name: one for name, one in (capabilities or {}).items() if named.get(name)}
            if given:
                config["runtimeConfig"] = given
            if result is not None and command not in LIST_COMMANDS:
                config["prevResult"] = result
            if command == "GC":
                stay = [{"containerID": one, "ifname": "eth0"} for one in valid or ()]
                config["cni.dev/valid-attachments"] = stay
            answer = self._run(plugin["type"], command, container, netns, args, config)
            if command == "ADD":
                result = answer
        return dict(result or {})

    def _run(
        self, kind: str, command: str, container: str, netns: str, args: str, config: object
    ) -> dict[str, Any]:
        binary = next((one / kind for one in self._folders if (one / kind).exists()), None)
        if binary is None:
            raise LabError(f"no plugin {kind} in {', '.join(map(str, self._folders))}")
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": args,
        }
        if command in LIST_COMMANDS:
            variables = {"CNI_COMMAND": command}
        done = subprocess.run(
            self._node.argv([str(binary)]),
            input=json.dumps(config),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env={
                "PATH": self._path,
                "CNI_PATH": ":".join(map(str, self._folders)),
                **variables,
            },
        )
        if done.returncode:
            raise LabError(f"{kind}: CNI {command} {container}: {done.stdout}{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        return answer
