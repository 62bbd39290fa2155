# SPDX-License-Identifier: Apache-2.0
"""Typed reading of decoded JSON: a wrong shape is an INVALID_CONFIG error that names the field.

null counts as absent everywhere, as in the reference implementation (Go's encoding/json).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from cni.errors import CniError, ErrorCode

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


def invalid(field: str, problem: str) -> CniError:
    """The error for one field, e.g. `prevResult.ips[0].address`."""
    return CniError(ErrorCode.INVALID_CONFIG, f"{field}: {problem}")


def as_object(value: object, field: str) -> Mapping[str, object]:
    """A JSON object; absent gives an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(field, f"must be an object, not {_shown(value)}")
    return value


def as_list(value: object, field: str) -> Sequence[object]:
    """A JSON array; absent gives an empty one."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise invalid(field, f"must be an array, not {_shown(value)}")
    return value


def as_string(value: object, field: str) -> str:
    """A JSON string; absent gives an empty one. Half surrogate pairs are refused: they cannot be
    written as UTF-8."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise invalid(field, f"must be a string, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid(field, "holds half of a surrogate pair") from error
    return value


def as_strings(value: object, field: str) -> tuple[str, ...]:
    """A JSON array of strings; absent gives an empty one."""
    return tuple(
        as_string(item, f"{field}[{index}]") for index, item in enumerate(as_list(value, field))
    )


def as_boolean(value: object, field: str) -> bool:
    """true or false; absent is false."""
    if value is not None and not isinstance(value, bool):
        raise invalid(field, f"must be true or false, not {_shown(value)}")
    return bool(value)


def as_optional_integer(value: object, field: str, high: int = 0xFFFFFFFF) -> int | None:
    """A whole number 0..high, or None if absent."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise invalid(field, f"must be a whole number 0-{high}, not {_shown(value)}")
    return value


def as_interface(value: object, field: str) -> Interface:
    """An address with its prefix length, e.g. "10.1.2.3/24"."""
    text = as_string(value, field)
    address, slash, length = text.partition("/")
    try:
        if slash and length.isascii() and length.isdigit() and "%" not in address:
            return ip_interface(text)
    except ValueError:
        pass
    raise invalid(field, f"must be an address with a prefix length, not {_shown(value)}")


def as_network(value: object, field: str) -> Network:
    """A subnet, e.g. "10.1.0.0/16". Host bits are cleared, as runtimes do."""
    interface = as_interface(value, field)
    return ip_network(interface.network)


def as_optional_address(value: object, field: str) -> Address | None:
    """An address without prefix length, or None if absent or empty."""
    text = as_string(value, field)
    try:
        if "%" not in text:
            return ip_address(text) if text else None
    except ValueError:
        pass
    raise invalid(field, f"must be an address, not {_shown(value)}")


def _shown(value: object) -> str:
    """A value for a message: never longer than a line."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
