# SPDX-License-Identifier: Apache-2.0
"""What the relay and the agent say to each other, and what a request means. Pure.

One connection carries one request. All numbers are little endian.

    frame    0  "BRCQ"
             4  u16  version of this format, 1
             6  u16  flags; 1: a descriptor of CNI_NETNS comes with the first byte (SCM_RIGHTS)
             8  u32  size of the variables, at most 256 KiB
            12  u32  size of the configuration, at most 1 MiB
            16  the variables: NAME=value of every CNI_*, a NUL after each
             …  the configuration: stdin, as it came

    answer   0  "BRCA"
             4  u32  exit code for the relay
             8  u32  size of the text, at most 1 MiB
            12  the text that the relay prints

A spool file is a frame (without a descriptor). Source of the requests: CNI spec 1.1.0, "Section 2:
Execution Protocol"; cni/environment.py and cni/config.py judge its two parts.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Final

from cni import environment, results
from cni.config import Attachment, Command, NetworkConfig, parse_config, version_hint
from cni.environment import PodRef, Variables
from cni.errors import CniError, ErrorCode

MAX_ENVIRONMENT: Final = 256 << 10
MAX_CONFIG: Final = 1 << 20
MAX_ANSWER: Final = 1 << 20
FORMAT: Final = 1
_FRAME: Final = struct.Struct("<4sHHII")
_ANSWER: Final = struct.Struct("<4sII")
HEADER_SIZE: Final = _FRAME.size
ANSWER_HEADER_SIZE: Final = _ANSWER.size
_FLAG_NETNS: Final = 1


class FrameError(Exception):
    """Bytes that are no frame. Nothing in them can be trusted, not even the command."""


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The first 16 bytes of a frame; sizes in bytes."""

    environment_size: int
    config_size: int
    with_netns: bool

    @property
    def body_size(self) -> int:
        """How many bytes follow."""
        return self.environment_size + self.config_size


@dataclass(frozen=True, slots=True)
class Frame:
    """A request as it came: bytes that nobody has judged yet."""

    environment: Variables
    config: bytes
    with_netns: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request. `container_id` and `ifname` are empty for GC, STATUS and VERSION."""

    command: Command
    config: NetworkConfig
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    """CNI_NETNS: a path in the runtime's mount namespace, to be told in results, not opened."""
    pod: PodRef | None = None
    """None if CNI_ARGS names none: a runtime without Kubernetes."""

    @property
    def attachment(self) -> Attachment:
        """What an ADD, DEL or CHECK is about, within the network `config.name`."""
        return Attachment(self.container_id, self.ifname)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the relay prints. `error` is 0 for success; the exit code is then 0, else 1."""

    body: bytes = b""
    error: int = 0

    @property
    def exit_code(self) -> int:
        """Codes of errors go up to 999, those of processes do not."""
        return 1 if self.error else 0


def success(request: Request, result: results.Result | None = None) -> Reply:
    """Nothing, or for ADD the result in the version that was asked for."""
    return Reply(result.encode(request.config.version) if result is not None else b"")


def failure(error: CniError, version: str = results.NEWEST) -> Reply:
    """An error object."""
    return Reply(_json(results.error_json(error, version)), int(error.code))


def failure_of(frame: Frame, error: CniError) -> Reply:
    """An error object in the version of a frame that may be no valid request."""
    return failure(error, version_hint(frame.config))


def versions(request: Request) -> Reply:
    """The answer to VERSION."""
    return Reply(_json(results.versions_json(request.config.version)))


# ---- bytes -----------------------------------------------------------------------------------


def parse_header(data: bytes) -> FrameHeader:
    """Reads HEADER_SIZE bytes. FrameError if they do not begin a frame of this format."""
    if len(data) != HEADER_SIZE:
        raise FrameError(f"a frame's header has {HEADER_SIZE} bytes, not {len(data)}")
    magic, version, flags, environment_size, config_size = _FRAME.unpack(data)
    if magic != b"BRCQ":
        raise FrameError(f"this is no frame: it begins with {magic!r}")
    if version != FORMAT or flags & ~_FLAG_NETNS:
        raise FrameError(
            f"frame format {version} (flags {flags:#x}) is unknown: relay and agent are of"
            " different releases; install the bristle-cni of this agent"
        )
    if environment_size > MAX_ENVIRONMENT or config_size > MAX_CONFIG:
        raise FrameError(f"a frame of {environment_size} + {config_size} bytes is too large")
    return FrameHeader(environment_size, config_size, bool(flags & _FLAG_NETNS))


def parse_body(header: FrameHeader, data: bytes) -> Frame:
    """Reads the bytes behind a header. FrameError if their number or form is wrong."""
    if len(data) != header.body_size:
        raise FrameError(f"the frame's body has {len(data)} bytes, not {header.body_size}")
    block = data[: header.environment_size]
    if block and not block.endswith(b"\0"):
        raise FrameError("the variables do not end with a NUL")
    variables: dict[str, bytes] = {}
    for entry in block.split(b"\0")[:-1]:
        name, separator, value = entry.partition(b"=")
        if not separator or not name.startswith(b"CNI_"):
            raise FrameError(f"{entry[:40]!r} is no CNI_* variable")
        # getenv() finds the first of equal ones too.
        variables.setdefault(name.decode(errors="surrogateescape"), value)
    return Frame(variables, data[header.environment_size :], header.with_netns)


def parse_frame(data: bytes) -> Frame:
    """Reads a whole frame, e.g. a spool file."""
    return parse_body(parse_header(data[:HEADER_SIZE]), data[HEADER_SIZE:])


def encode_frame(frame: Frame) -> bytes:
    """The inverse of parse_frame."""
    variables = b"".join(
        name.encode(errors="surrogateescape") + b"=" + value + b"\0"
        for name, value in frame.environment.items()
    )
    flags = _FLAG_NETNS if frame.with_netns else 0
    header = _FRAME.pack(b"BRCQ", FORMAT, flags, len(variables), len(frame.config))
    return header + variables + frame.config


def encode_answer(reply: Reply) -> bytes:
    """A reply as it goes to the relay. A text that is too large becomes an error."""
    if len(reply.body) > MAX_ANSWER:
        reply = failure(CniError(ErrorCode.INTERNAL, "the result is larger than 1 MiB"))
    return _ANSWER.pack(b"BRCA", reply.exit_code, len(reply.body)) + reply.body


# ---- meaning ---------------------------------------------------------------------------------


def parse_request(frame: Frame) -> Request:
    """Checks a frame. Raises CniError: INVALID_ENVIRONMENT, or what parse_config raises."""
    variables = frame.environment
    command = environment.command(variables)
    if command is Command.VERSION:
        return Request(command, NetworkConfig(version_hint(frame.config), "", ""))
    config = parse_config(frame.config, command)
    if command in (Command.GC, Command.STATUS):
        return Request(command, config)
    removal = command is Command.DEL
    return Request(
        command=command,
        config=config,
        container_id=environment.container_id(variables),
        ifname=environment.ifname(variables),
        netns=environment.netns(variables, required=not removal),
        pod=environment.pod(variables, lenient=removal),
    )


def _json(value: results.JsonObject) -> bytes:
    return json.dumps(value).encode() + b"\n"
