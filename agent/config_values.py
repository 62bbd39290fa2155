# SPDX-License-Identifier: Apache-2.0
"""Kinds of configuration values: each checks a value of the file, or the text of a flag.

A kind raises ValueError with what is expected; `agent.config` adds the key.
"""

import ipaddress
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from identity.labels import LabelError, LabelFilter

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NODE_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
_DEVICE = re.compile(r"[^\s/:\x00-\x1f]{1,15}")  # dev_valid_name() of the kernel
_DURATION = re.compile(
    r"(?:([0-9]+(?:\.[0-9]+)?)h)?(?:([0-9]+(?:\.[0-9]+)?)m)?(?:([0-9]+(?:\.[0-9]+)?)s)?"
)
_SOCKET_PATH_MAX = 107  # sun_path of unix(7), without the final zero
_LONGEST_SOCKET = "/observer.sock"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value.

    expected: what is accepted, for messages and the reference, e.g. "a whole number".
    check: the value of the file to the value of the configuration. Raises ValueError.
    from_text: the text of a flag to what would stand in the file. Raises ValueError.
    flag: the flag takes no value, but has a `--no-` form.
    """

    expected: str
    check: Callable[[object], Any]
    from_text: Callable[[str], object] = str
    flag: bool = False


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports from first to last, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def overlaps(self, other: "PortRange") -> bool:
        """Whether a port is in both."""
        return self.first <= other.last and other.first <= self.last


def shown(value: object) -> str:
    """A value for a message: as written, short, and safe to print."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    text = text if len(text) <= 80 else text[:79] + "…"
    return text if text.isprintable() else ascii(text)


def whole_number(low: int, high: int, *, zero: bool = False) -> Kind:
    """A number within limits; `zero` is allowed besides, for "choose yourself"."""
    expected = f"a whole number from {low} to {high}" + (", or 0" if zero else "")

    def check(value: object) -> int:
        if type(value) is int and (low <= value <= high or (zero and value == 0)):
            return value
        raise ValueError(f"expected {expected}, not {shown(value)}")

    def from_text(text: str) -> object:
        return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else text

    return Kind(expected, check, from_text)


def choice(*names: str) -> Kind:
    """One of several words."""
    expected = f"one of {', '.join(names)}"

    def check(value: object) -> str:
        if isinstance(value, str) and value in names:
            return value
        raise ValueError(f"expected {expected}, not {shown(value)}")

    return Kind(expected, check)


def list_of(kind: Kind, expected: str) -> Kind:
    """Several values of a kind, none twice; as a flag separated by commas, or the flag repeated."""

    def check(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"expected {expected}, not {shown(value)}")
        found: list[Hashable] = []
        for item in value:
            checked = kind.check(item)
            if checked in found:
                raise ValueError(f"{shown(item)} is given twice")
            found.append(checked)
        return tuple(found)

    def from_text(text: str) -> object:
        return [part.strip() for part in text.split(",") if part.strip()]

    return Kind(expected, check, from_text)


def _text(value: object, expected: str) -> str:
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, bool | int | float) else ""
        raise ValueError(f"expected {expected}, not {shown(value)}{hint}")
    return value


def _node_name(value: object) -> str:
    text = _text(value, NODE_NAME.expected)
    if not _NODE_NAME.fullmatch(text):
        raise ValueError(f"expected {NODE_NAME.expected}, not {shown(text)}")
    return text


def _folder(value: object) -> Path:
    text = _text(value, FOLDER.expected)
    # normpath would follow `..` through links wrongly; nobody needs it here.
    if not text.startswith("/") or "\0" in text or not text.isprintable():
        raise ValueError(f"expected {FOLDER.expected}, not {shown(text)}")
    path = Path(text)
    if path == Path("/") or ".." in path.parts:
        raise ValueError(
            f"expected {FOLDER.expected} below the root, without .., not {shown(text)}"
        )
    return path


def _socket_folder(value: object) -> Path:
    path = _folder(value)
    room = _SOCKET_PATH_MAX - len(_LONGEST_SOCKET)
    if len(str(path).encode()) > room:
        raise ValueError(f"expected a path of at most {room} bytes: it holds UNIX sockets")
    return path


def _network(value: object) -> Network:
    text = _text(value, NETWORK.expected)
    address, slash, length = text.partition("/")
    if not slash or not length.isascii() or not length.isdigit():
        raise ValueError(f"expected {NETWORK.expected}, not {shown(text)}")
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"expected {NETWORK.expected}, not {shown(text)}") from None
    if ipaddress.ip_address(address) != network.network_address:
        raise ValueError(f"{text} has host bits set: write {network}")
    if (
        network.is_multicast
        or network.is_loopback
        or network.is_link_local
        or network.network_address.is_unspecified
        or (isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped)
    ):
        raise ValueError(f"{text} holds no addresses that pods can have")
    if network.num_addresses < 4:
        raise ValueError(f"{text} is too small: at least 4 addresses are needed")
    return network


def _any_network(value: object) -> Network:
    text = _text(value, ANY_NETWORK.expected)
    address, slash, length = text.partition("/")
    try:
        network = ipaddress.ip_network(text, strict=False)
        if not slash or not length.isascii() or not length.isdigit() or "%" in address:
            raise ValueError(text)
    except ValueError:
        raise ValueError(f"expected {ANY_NETWORK.expected}, not {shown(text)}") from None
    if ipaddress.ip_address(address) != network.network_address:
        raise ValueError(f"{text} has host bits set: write {network}")
    return network


def _port_range(value: object) -> PortRange:
    text = _text(value, PORT_RANGE.expected)
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
    if not match:
        raise ValueError(f"expected {PORT_RANGE.expected}, not {shown(text)}")
    first, last = int(match[1]), int(match[2])
    if not 1024 <= first <= last <= 65535:
        raise ValueError(f"expected {PORT_RANGE.expected}, within 1024-65535, not {shown(text)}")
    return PortRange(first, last)


def _device(value: object) -> str:
    text = _text(value, DEVICE.expected)
    if not _DEVICE.fullmatch(text) or text in (".", ".."):
        raise ValueError(f"expected {DEVICE.expected}, not {shown(text)}")
    return text


def _label_prefix(value: object) -> str:
    text = _text(value, LABEL_PREFIX.expected)
    try:
        LabelFilter.of([text])
    except LabelError as error:
        raise ValueError(str(error)) from None
    return text


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {shown(value)}")
    return value


def _boolean_text(text: str) -> object:
    return {"true": True, "false": False}.get(text.lower(), text)


def _duration(value: object) -> float:
    if isinstance(value, str) and value and (match := _DURATION.fullmatch(value)):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        value = hours * 3600 + minutes * 60 + seconds
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= 86400 * 7:
        raise ValueError(f"expected {DURATION.expected}, not {shown(value)}")
    return float(value)


def _duration_text(text: str) -> object:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _listen_address(value: object) -> tuple[str, int] | None:
    expected = "host:port such as 127.0.0.1:9962 or [::1]:9962, or nothing"
    text = _text(value, expected)
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"expected {expected}, not {shown(value)}")
    if (":" in bare) != (bare != host):
        raise ValueError(f"expected {expected}: brackets are for IPv6 and needed there")
    try:
        ipaddress.ip_address(bare or "0.0.0.0")
    except ValueError:
        if not _NODE_NAME.fullmatch(bare):
            raise ValueError(f"expected {expected}, not {shown(value)}") from None
    return bare, int(port)


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """How the API server is reached. kubeconfig: None: as pods are, by their service account."""

    kubeconfig: Path | None = None

    def __str__(self) -> str:
        return str(self.kubeconfig or IN_CLUSTER)


def _kubernetes(value: object) -> Kubernetes:
    if value == IN_CLUSTER:
        return Kubernetes()
    if not isinstance(value, dict):
        raise ValueError(f"expected {KUBERNETES.expected}, not {shown(value)}")
    if set(value) != {"kubeconfig"}:
        raise ValueError("expected one key, kubeconfig")
    return Kubernetes(_folder(value["kubeconfig"]))


def _kubernetes_text(text: str) -> object:
    return text if text == IN_CLUSTER else {"kubeconfig": text}


IN_CLUSTER = "in-cluster"
KUBERNETES = Kind(
    "in-cluster, or a mapping kubeconfig: FILE (as a flag: the path)",
    _kubernetes,
    _kubernetes_text,
)
NODE_NAME = Kind("a node name as in Kubernetes (lower case letters, digits, - and .)", _node_name)
FOLDER = Kind("an absolute path", _folder)
SOCKET_FOLDER = Kind("an absolute path, short enough for UNIX sockets in it", _socket_folder)
NETWORK = Kind("a network such as 10.0.0.0/24 or fd00:10::/112", _network)
ANY_NETWORK = Kind("a network such as 10.0.0.0/8 or fd00::/8", _any_network)
PORT_RANGE = Kind("a range of ports such as 61000-65535", _port_range)
DEVICE = Kind("a device name of at most 15 characters", _device)
LABEL_PREFIX = Kind("a label prefix such as k8s:app or !k8s:version", _label_prefix)
BOOLEAN = Kind("true or false", _boolean, _boolean_text, flag=True)
DURATION = Kind(
    "seconds, or a text such as 90s, 15m or 1h30m (1s to 168h)", _duration, _duration_text
)
LISTEN_ADDRESS = Kind("host:port such as 127.0.0.1:9962, or nothing", _listen_address)
