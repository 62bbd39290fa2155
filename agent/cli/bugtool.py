# SPDX-License-Identifier: Apache-2.0
"""`bristle bugtool`: one archive with what a bug report needs, and no secrets.

Each part is collected on its own: what fails leaves a line in errors.txt, so a broken
agent or a missing map never prevents the rest. Nothing reads the environment, tokens or
files of credentials; text that looks like them is masked all the same.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from agent.cli.options import bpffs_dir_option, run_dir_option

LIMIT = 64 * 1024 * 1024
"""Bytes of one file in the archive; what is longer is cut, and says so."""
COMMANDS = {
    "host/addresses.txt": ("ip", "-details", "-statistics", "address"),
    "host/routes.txt": ("ip", "route", "show", "table", "all"),
    "host/routes6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "host/neighbours.txt": ("ip", "neighbour"),
    "host/rules.txt": ("ip", "rule"),
    "host/links.json": ("ip", "-json", "-statistics", "-details", "link"),
    "host/programs.txt": ("bpftool", "prog", "show"),
    "host/attached.txt": ("bpftool", "net", "show"),
    "host/kernel-log.txt": ("dmesg", "--level", "emerg,alert,crit,err,warn"),
}
SYSCTLS = (
    "kernel/osrelease",
    "kernel/unprivileged_bpf_disabled",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/forwarding",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/default/accept_dad",
    "net/ipv6/conf/default/accept_ra",
)


class Archive:
    """A .tar.gz under construction: every file is masked, bounded, and below one folder."""

    def __init__(self, tar: tarfile.TarFile, folder: str, now: float) -> None:
        self._tar = tar
        self._folder = folder
        self._now = int(now)
        self._errors: list[str] = []

    def add(self, name: str, content: bytes | str) -> None:
        """A file; secrets in it are masked. JSON stays JSON."""
        text = content if isinstance(content, str) else content.decode(errors="replace")
        raw = _mask(text).encode()
        if len(raw) > LIMIT:
            raw = raw[:LIMIT] + b"\n[cut here]\n"
        info = tarfile.TarInfo(f"{self._folder}/{_inside(name)}")
        info.size, info.mtime, info.mode = len(raw), self._now, 0o600
        self._tar.addfile(info, io.BytesIO(raw))

    def collect(self, name: str, part: Callable[[], bytes | str]) -> None:
        """A file from `part`, or a line in errors.txt."""
        try:
            self.add(name, part())
        except click.ClickException as error:
            self._errors.append(f"{name}: {error.message}")
        except Exception as error:
            self._errors.append(f"{name}: {type(error).__name__}: {error}")

    def finish(self) -> None:
        """Writes errors.txt."""
        self.add("errors.txt", "".join(f"{line}\n" for line in self._errors) or "none\n")


@click.command()
@run_dir_option
@bpffs_dir_option
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The archive; default bristle-bugtool-TIME.tar.gz here.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A log file to include; repeatable.",
)
def bugtool(
    run_dir: Path,
    bpffs_dir: Path,
    target: Path | None,
    logs: tuple[Path, ...],
) -> None:
    """Pack state, maps, logs and kernel facts into one archive, without secrets."""
    now = time.time()
    folder = time.strftime("bristle-bugtool-%Y%m%d-%H%M%S", time.gmtime(now))
    target = target or Path(f"{folder}.tar.gz")
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise click.ClickException(f"cannot write {target}: {error.strerror}") from None
    with (
        os.fdopen(descriptor, "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar,
    ):
        archive = Archive(tar, folder, now)
        _from_agent(archive, run_dir)
        _from_maps(archive, run_dir, bpffs_dir)
        _from_host(archive)
        for log in logs:
            archive.collect(f"logs/{log.name}", lambda log=log: _tail(log))  # type: ignore[misc]
        archive.finish()
    click.echo(f"wrote {target}")


def _from_agent(archive: Archive, run_dir: Path) -> None:
    from agent.cli.client import CHECK_TIMEOUT, TIMEOUT, connect
    from agent.cli.output import to_dict

    calls = {
        "status": ("Status", "StatusRequest", TIMEOUT),
        "endpoints": ("ListEndpoints", "ListEndpointsRequest", TIMEOUT),
        "identities": ("ListIdentities", "ListIdentitiesRequest", TIMEOUT),
        "policies": ("ListPolicies", "ListPoliciesRequest", TIMEOUT),
        "selectors": ("Selectors", "SelectorsRequest", TIMEOUT),
        "numbers": ("Numbers", "NumbersRequest", TIMEOUT),
        "metrics": ("Metrics", "MetricsRequest", TIMEOUT),
        "check": ("Check", "CheckRequest", CHECK_TIMEOUT),
    }

    def ask(method: str, request: str, timeout: float) -> str:
        with connect(run_dir) as agent:
            from api import agent_pb2

            answer = getattr(agent, method)(getattr(agent_pb2, request)(), timeout=timeout)
        return _json(to_dict(answer))

    for name, (method, request, timeout) in calls.items():
        archive.collect(
            f"agent/{name}.json",
            lambda m=method, r=request, t=timeout: ask(m, r, t),  # type: ignore[misc]
        )

    def flows() -> str:
        with connect(run_dir) as agent:
            from api import agent_pb2

            request = agent_pb2.MonitorRequest(last=4096, no_follow=True)
            return "".join(
                json.dumps(to_dict(event)) + "\n"
                for batch in agent.Monitor(request, timeout=TIMEOUT)
                for event in batch.events
            )

    archive.collect("agent/flows.jsonl", flows)
    files: dict[str, bytearray] = {}

    def dump() -> str:
        with connect(run_dir) as agent:
            from api import agent_pb2

            for part in agent.Dump(agent_pb2.DumpRequest(), timeout=CHECK_TIMEOUT):
                files.setdefault(part.name, bytearray()).extend(part.content)
        return "".join(f"{name}\n" for name in files)

    archive.collect("agent/dump.txt", dump)
    for name, content in files.items():
        archive.add(f"agent/dump/{_inside(name)}", bytes(content))


def _from_maps(archive: Archive, run_dir: Path, bpffs_dir: Path) -> None:
    from agent.cli import maps

    names = maps.ask_names(run_dir)
    for name, rows in (
        ("policy", maps.policy_rows),
        ("ipcache", maps.ipcache_rows),
        ("ct", maps.ct_rows),
        ("nat", maps.nat_rows),
        ("endpoint", maps.endpoint_rows),
        ("metrics", maps.metrics_rows),
    ):
        archive.collect(
            f"maps/{name}.json",
            lambda rows=rows: _json(list(rows(bpffs_dir, names))),  # type: ignore[misc]
        )
    archive.collect(
        "maps/pins.txt",
        lambda: "".join(f"{path}\n" for path in sorted(bpffs_dir.rglob("*"))),
    )


def _from_host(archive: Archive) -> None:
    archive.collect("host/uname.txt", lambda: " ".join(os.uname()) + "\n")
    archive.collect("host/os-release.txt", lambda: Path("/etc/os-release").read_bytes())
    archive.collect("host/sysctls.txt", lambda: "".join(_sysctls()))
    archive.collect("host/features.json", _features)
    archive.collect("host/version.txt", _version)
    for name, command in COMMANDS.items():
        archive.collect(name, lambda command=command: _run(command))  # type: ignore[misc]


def _mask(text: str) -> str:
    from agent.cli.redact import redact, redact_value

    if text[:1] in ("{", "["):
        try:
            return _json(redact_value(json.loads(text)))
        except (ValueError, RecursionError):
            pass  # JSON lines, or cut off
    return redact(text)


def _version() -> str:
    from agent.cli.version import version

    return f"{version()}\n"


def _features() -> str:
    from agent.cli.doctor import as_dict
    from agent.kernel.features import probe

    return _json([as_dict(feature) for feature in probe()])


def _sysctls() -> Iterator[str]:
    for name in SYSCTLS:
        try:
            value = Path("/proc/sys", name).read_text().strip()
        except OSError as error:
            value = f"({error.strerror})"
        yield f"{name.replace('/', '.')} = {value}\n"


def _run(command: tuple[str, ...]) -> bytes:
    # No environment but what a command needs to be found and to speak English.
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
    )
    if done.returncode:
        raise click.ClickException(
            f"{' '.join(command)}: exit code {done.returncode}: "
            + done.stderr.decode(errors="replace").strip()
        )
    return done.stdout


def _tail(path: Path) -> bytes:
    """The last LIMIT bytes."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - LIMIT, 0))
        return file.read(LIMIT)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _inside(name: str) -> str:
    """A relative path that stays where it is unpacked."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", "..")) or "unnamed"
