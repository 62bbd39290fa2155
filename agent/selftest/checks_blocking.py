# SPDX-License-Identifier: Apache-2.0
"""About sockets that block in a call: they decide whether redirect may take those, too."""

from __future__ import annotations

import errno
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from agent.selftest.check import SHORT, Check, exchange, expect
from agent.selftest.stage import PATIENCE, CheckFailed, Stage, in_thread


def _a_signal(stage: Stage) -> None:
    """A signal that is handled does not end a read with "no data": it goes on (SA_RESTART)."""
    with stage.listener() as listener, stage.connection(listener, True) as (client, server):
        exchange(client, server)
        found = _read_meanwhile(
            server, lambda thread: signal.pthread_kill(thread, signal.SIGUSR1), client
        )
        expect(found == b"late", f"a signal ends a blocking read with {found!r}")


def _own_half_close(stage: Stage) -> None:
    """Another thread ends its own half of the connection."""
    with stage.listener() as listener, stage.connection(listener, True) as (client, server):
        exchange(client, server)
        found = _read_meanwhile(server, lambda _: server.shutdown(socket.SHUT_WR), client)
        expect(found == b"late", f"ending the other half ends a blocking read with {found!r}")


def _read_meanwhile(
    reader: socket.socket, meanwhile: Callable[[int], None], sender: socket.socket
) -> bytes | str:
    """What a read gives during which something happens, and after which data comes."""
    found: list[bytes | str] = []

    def read() -> None:
        buffer = bytearray(16)
        try:
            # Python repeats what a signal broke off; an error such as EAGAIN it does not.
            found.append(bytes(buffer[: reader.recv_into(buffer)]))
        except OSError as error:
            found.append(errno.errorcode.get(error.errno or 0, str(error)))

    former = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        signal.siginterrupt(signal.SIGUSR1, False)
        thread = in_thread(read)
        time.sleep(SHORT)
        meanwhile(thread.ident or 0)
        time.sleep(2 * SHORT)
        sender.sendall(b"late")
        thread.join(PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, former)
    return found[0] if found else "nothing"


def _all_or_nothing(stage: Stage) -> None:
    """MSG_WAITALL waits for all of it."""
    with stage.listener() as listener, stage.connection(listener, True) as (client, server):
        exchange(client, server)
        found: list[int] = []
        thread = in_thread(lambda: found.append(len(server.recv(8, socket.MSG_WAITALL))))
        time.sleep(SHORT)
        client.sendall(b"1234")
        time.sleep(SHORT)
        client.sendall(b"5678")
        thread.join(PATIENCE)
        expect(found == [8], f"MSG_WAITALL for 8 bytes gives {found}")


def _a_timeout(stage: Stage) -> None:
    """SO_RCVTIMEO ends a read after its time, and not before."""
    with stage.listener() as listener, stage.connection(listener, True) as (client, server):
        exchange(client, server)
        wanted = 2 * SHORT
        server.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(wanted * 1e6))
        )
        began = time.monotonic()
        try:
            server.recv(1)
        except BlockingIOError:
            took = time.monotonic() - began
            expect(wanted / 2 < took < PATIENCE, f"SO_RCVTIMEO of {wanted} s ends after {took} s")
            return
        raise CheckFailed("SO_RCVTIMEO does not end a read")


def _a_reset(stage: Stage) -> None:
    """Who reads learns that the other end is gone."""
    with stage.listener() as listener, stage.connection(listener, True) as (client, server):
        exchange(client, server)
        found: list[str] = []

        def read() -> None:
            try:
                found.append("end" if not server.recv(1) else "data")
            except OSError as error:
                found.append(errno.errorcode.get(error.errno or 0, str(error)))

        thread = in_thread(read)
        time.sleep(SHORT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        thread.join(PATIENCE)
        expect(found == ["ECONNRESET"], f"a reset ends a blocking read with {found}")


CHECKS: Final = (
    Check("signal", True, _a_signal),
    Check("half close", True, _own_half_close),
    Check("MSG_WAITALL", True, _all_or_nothing),
    Check("SO_RCVTIMEO", True, _a_timeout),
    Check("reset", True, _a_reset),
)
