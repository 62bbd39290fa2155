# SPDX-License-Identifier: Apache-2.0
"""Calls to a running agent, and what its refusals look like to a user."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

SOCKET_NAME = "agent.sock"
LOCK_NAME = "agent.lock"
TIMEOUT = 15.0
CHECK_TIMEOUT = 120.0
"""Seconds. A check evaluates every table against every peer class."""


class NoAgent(click.ClickException):
    """Nobody answers on the socket. Exit code 1."""


class AgentRefused(click.ClickException):
    """The agent answered with an error. Exit code 1."""


@contextmanager
def connect(run_dir: Path) -> Iterator[Any]:
    """A stub of the agent's service. Raises NoAgent, and AgentRefused for errors of calls.

    The stub is of the generated class, which has no types.
    """
    path = run_dir / SOCKET_NAME
    _probe(path)
    # grpc takes longer to import than everything else a command does.
    import grpc

    from api.agent_pb2_grpc import AgentStub

    channel = grpc.insecure_channel(
        f"unix:{path.absolute()}",
        options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)],
    )
    try:
        yield AgentStub(channel)  # type: ignore[no-untyped-call]
    except grpc.RpcError as error:
        raise _translate(error, path) from None
    finally:
        channel.close()


def _probe(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise NoAgent(f"{path}: permission denied; only root may ask the agent") from None
            doing = starting(path.parent)
            if doing is not None:
                raise NoAgent(f"the agent of {path.parent} does not listen yet: {doing}") from None
            why = "path too long" if error.errno is None else error.strerror
            raise NoAgent(
                f"no agent listens on {path} ({why}): start one with `bristle agent`, "
                "or name its folder with --run-dir"
            ) from None


def starting(run_dir: Path) -> str | None:
    """What an agent does that does not listen: it holds its lock, and says so in it. None: there is
    no such agent, or it is not for us to know."""
    try:
        fd = os.open(run_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 4096, 0).decode(errors="replace").strip() or "it is starting"
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def _translate(error: Any, path: Path) -> click.ClickException:
    import grpc

    code, details = error.code(), error.details()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return AgentRefused(f"the agent on {path} did not answer in time")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) and (
        "Socket closed" in details or "connect" in details or not details
    ):
        return NoAgent(f"the agent on {path} went away: {details or 'connection closed'}")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return AgentRefused(f"the agent on {path} is of another version: {details}")
    return AgentRefused(details)
