# SPDX-License-Identifier: Apache-2.0
"""Addresses, networks and named ports in Kubernetes objects, checked and canonical. Pure."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from sys import intern

from agent.kube.fields import Object, TranslateError, cut, shown, text_field, type_name
from identity.ipcache import NamedPort

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}

_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")


def usable_address(text: str, path: str, owner: str) -> str:
    """Canonical text of an address that a pod or a node can have. Raises TranslateError.

    owner: whose address it is, for messages: "pod", "node".
    """
    if _IPV4.fullmatch(text):
        first = text.partition(".")[0]
        if first in ("0", "127") or int(first) >= 224:
            raise TranslateError(path, f"{text} cannot be the address of a {owner}")
        return text
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise TranslateError(path, f'"{cut(text)}" is no IP address') from None
    if address.ipv4_mapped is not None:
        raise TranslateError(path, f"IPv4 in IPv6 notation: write {address.ipv4_mapped}")
    if (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
        or address.scope_id is not None
    ):
        raise TranslateError(path, f"{address} cannot be the address of a {owner}")
    return str(address)


def one_of_each_family(addresses: Iterable[tuple[str, str]], what: str) -> tuple[str, ...]:
    """Pairs of a canonical text and its path, where each family may be there once.

    what: "address of the pod". Raises TranslateError for a second one.
    """
    found: list[str] = []
    for text, path in addresses:
        is_ipv6 = ":" in text
        if any((":" in other) is is_ipv6 for other in found):
            raise TranslateError(path, f"a second {'IPv6' if is_ipv6 else 'IPv4'} {what}")
        found.append(text)
    return tuple(found)


def network(text: str, path: str) -> str:
    """Canonical text of a network; bits beyond the prefix count for nothing, as in the API."""
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise TranslateError(path, f'"{cut(text)}" is no network such as 10.244.1.0/24') from None
    if "/" not in text:
        raise TranslateError(path, f'"{cut(text)}" has no prefix length')
    if isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped is not None:
        raise TranslateError(path, f"{found} is IPv4 in IPv6 notation")
    return str(found)


def named_port(port: object, where: str, number_field: str) -> NamedPort | None:
    """A port of a container or endpoint; None if it has no name. Raises TranslateError.

    where: path of `port`. number_field: where its number stands, such as "containerPort".
    """
    if not isinstance(port, Mapping):
        raise TranslateError(where, f"must be an object, not {type_name(port)}")
    name = text_field(port, "name", f"{where}.name")
    if not name:
        return None
    if not _PORT_NAME.fullmatch(name):
        raise TranslateError(
            f"{where}.name",
            f'"{cut(name)}" is no port name: 1 to 15 lower case letters, digits and single "-",'
            " with at least one letter",
        )
    number = port_number(port, number_field, f"{where}.{number_field}")
    return NamedPort(intern(name), protocol_of(port, where), number)


def port_number(port: Object, name: str, path: str) -> int:
    """The field of a port that has its number. Raises TranslateError."""
    number = port.get(name)
    if type(number) is not int or not 1 <= number <= 65535:
        raise TranslateError(path, f"must be 1 to 65535, not {shown(number)}")
    return number


def protocol_of(port: Object, where: str) -> int:
    """IP protocol number of a port, TCP unless it says another. Raises TranslateError."""
    protocol = text_field(port, "protocol", f"{where}.protocol") or "TCP"
    if protocol not in PROTOCOLS:
        raise TranslateError(
            f"{where}.protocol", f'must be TCP, UDP or SCTP, not "{cut(protocol)}"'
        )
    return PROTOCOLS[protocol]
