# SPDX-License-Identifier: Apache-2.0
"""The command line: parse, ask, print.

Here belong: click commands, tables and their JSON. Never: state, or decisions that the
agent would make otherwise. Each command imports what it needs when it runs, so that
`bristle --version` and completion are quick.
"""


def main() -> None:
    """Entry point of the `bristle` executable."""
    from agent.cli.root import cli

    cli(prog_name="bristle")
