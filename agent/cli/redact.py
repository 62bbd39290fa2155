# SPDX-License-Identifier: Apache-2.0
"""Masks what looks like a secret in text that leaves the machine."""

from __future__ import annotations

import json
import re
from typing import Any, Final

MASK: Final = "[redacted]"

_PEM: Final = re.compile(
    r"-----BEGIN ([A-Z0-9 ]*(?:PRIVATE KEY|CERTIFICATE)[A-Z0-9 ]*)-----.*?"
    r"(?:-----END \1-----|\Z)",
    re.DOTALL,
)
_JWT: Final = re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*")
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_URL_USER: Final = re.compile(r"(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)")
_SECRET_KEY: Final = r"""
    (?: token | passw(?:or)?d | passphrase | secret | api[_-]?key | access[_-]?key
      | private[_-]?key | client[_-]?key(?:-data)? | credentials? | cookie
      | client-certificate-data | certificate-authority-data )
    (?: [_-] (?:id|data|value|key) )?
"""
_KEY: Final = re.compile(_SECRET_KEY + r"\Z", re.IGNORECASE | re.VERBOSE)
# The end of a key that names a secret, then its value: YAML, shell, JSON in a log line.
_NAMED: Final = re.compile(
    rf"""( {_SECRET_KEY} (?: \\*["'] )? [ \t]* [:=] [ \t]* )
    ( \\+" .*? \\+" | " (?: [^"\\\n] | \\. )* " | '[^'\n]*' | [^\s,;}}\]"'\\]+ )""",
    re.IGNORECASE | re.VERBOSE,
)


def redact(text: str) -> str:
    """`text` with keys, tokens, passwords and credentials in URLs masked."""
    text = _PEM.sub(MASK, text)
    text = _JWT.sub(MASK, text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    text = _URL_USER.sub(MASK, text)
    return _NAMED.sub(rf"\1{MASK}", text)


def redact_value(value: Any) -> Any:
    """JSON data with values of secret keys, and secrets inside strings, masked. Strings that
    hold a JSON object or list themselves are treated as what they hold."""
    if isinstance(value, dict):
        return {
            key: MASK if _KEY.search(key) and item is not None else redact_value(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [redact_value(item) for item in value]
    if isinstance(value, str):
        return _redact_string(value)
    return value


def _redact_string(text: str) -> str:
    if text[:1] in ("{", "["):
        try:
            return json.dumps(redact_value(json.loads(text)))
        except (ValueError, RecursionError):
            pass
    return redact(text)
