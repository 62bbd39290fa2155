# SPDX-License-Identifier: Apache-2.0
"""CNI errors: the codes and the exception that becomes an error object.

Source: CNI spec 1.1.0, section "Error", and STATUS for 50 and 51. Codes below 100 are the
spec's alone; a plugin numbers its own from 100.
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """Codes that bristle gives. Runtimes act on TRY_AGAIN, UNAVAILABLE and LIMITED only."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    """The message holds the key and the value."""
    UNKNOWN_CONTAINER = 3
    """The runtime need not clean up."""
    INVALID_ENVIRONMENT = 4
    """The message holds the variables' names."""
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    """Bytes that are not what they should be at all: no JSON, no object."""
    INVALID_CONFIG = 7
    """A JSON object with a wrong value in it; the message names the field."""
    TRY_AGAIN_LATER = 11
    UNAVAILABLE = 50
    """STATUS: no ADD can be served."""
    LIMITED = 51
    """STATUS: no ADD can be served, and running containers may lack connectivity."""

    ADDRESSES_EXHAUSTED = 100
    INTERFACE_EXISTS = 101
    CAPACITY_EXCEEDED = 102
    """A kernel table is too small for this pod or its policy."""
    CHECK_FAILED = 103
    """CHECK: something that ADD made is missing or wrong."""
    INTERNAL = 999
    """A defect of the agent; its log has the details."""


class CniError(Exception):
    """A request that cannot be served. `message` is one line that names the thing at fault and
    the way out; `details` may be long."""

    def __init__(self, code: ErrorCode, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
