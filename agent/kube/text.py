# SPDX-License-Identifier: Apache-2.0
"""What the YAML and the JSON reader have in common: their error, and how deep objects may be."""

MAX_DEPTH = 64  # levels of nesting in one document; Kubernetes objects have about 15


class DocumentError(Exception):
    """Text that is no valid document.

    line: line in the file, counted from 1; 0 when not known.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.message = message
        self.line = line
