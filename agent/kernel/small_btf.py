# SPDX-License-Identifier: Apache-2.0
"""The least type description that the kernel takes for storage in sockets: an ``int`` as the key,
so many bytes as the value (Documentation/bpf/map_sk_storage.rst; the format:
Documentation/bpf/btf.rst).
"""

import struct
from typing import Final

KEY_TYPE: Final = 1
VALUE_TYPE: Final = 3

_INT, _ARRAY = 1, 3
_SIGNED: Final = 1


def octets_btf(size: int) -> bytes:
    """A description with an int (id 1), a byte (2) and an array of ``size`` bytes (3)."""
    strings = b"\0int\0u8\0"
    types = struct.pack("<IIII", 1, _INT << 24, 4, _SIGNED << 24 | 32)
    types += struct.pack("<IIII", 5, _INT << 24, 1, 8)
    types += struct.pack("<IIIIII", 0, _ARRAY << 24, 0, 2, 1, size)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings
