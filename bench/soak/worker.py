# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.soak.worker ROLE HOST PORT SECONDS SEED`: one end of a conversation whose every
byte is known.

Servers say `ready` and serve until they are killed. Clients print one JSON object at the end: what
they did, the longest exchange in seconds (less what this process itself was late by), and what went
wrong. Exit status 1 for a wrong byte or an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Final

TICK: Final = 0.02
LONGEST_MESSAGE: Final = 1 << 18
_PATTERN: Final = random.Random(251).randbytes(1 << 20)
BLOB: Final = _PATTERN * 2
"""What web servers of the mix serve as /blob."""


@dataclass(slots=True)
class Told:
    """What a client did. longest: seconds of an exchange, without what the scheduler took."""

    exchanges: int = 0
    connections: int = 0
    bytes: int = 0
    longest: float = 0.0
    errors: list[str] = field(default_factory=list)


class WrongBytes(Exception):
    """What came is not what had to come."""


class Lateness:
    """How late this process's own timers have been, added up: no fault of a connection."""

    def __init__(self) -> None:
        self.total = 0.0

    async def watch(self) -> None:
        """Runs for ever."""
        while True:
            due = time.monotonic() + TICK
            await asyncio.sleep(TICK)
            self.total += max(0.0, time.monotonic() - due)


def message(dice: random.Random) -> bytes:
    """A message of any length, short ones more often."""
    size = int(2 ** dice.uniform(0, LONGEST_MESSAGE.bit_length() - 1))
    at = dice.randrange(len(_PATTERN) - size)
    return _PATTERN[at : at + size]


# ---- servers -------------------------------------------------------------------------------------


async def echo_server(host: str, port: int) -> None:
    """Gives back what it gets, without blocking."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, host, port)
    print("ready", flush=True)
    await server.serve_forever()


def blocking_server(host: str, port: int) -> None:
    """The same with a thread for each connection, and calls that block."""

    def serve(one: socket.socket) -> None:
        with one, contextlib.suppress(ConnectionError):
            while data := one.recv(1 << 16):
                one.sendall(data)

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=128) as listener:
        print("ready", flush=True)
        while True:
            one, _ = listener.accept()
            threading.Thread(target=serve, args=(one,), daemon=True).start()


# ---- clients -------------------------------------------------------------------------------------

Exchange = Callable[[asyncio.StreamReader, asyncio.StreamWriter, random.Random], Awaitable[int]]


async def converse(
    host: str, port: int, seconds: float, seed: int, exchange: Exchange, told: Told
) -> None:
    """Exchanges until the time is over, now and then over a new connection."""
    dice, late = random.Random(seed), Lateness()
    watch = asyncio.create_task(late.watch())
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends:
            began, before = time.monotonic(), late.total
            reader, writer = await asyncio.open_connection(host, port, limit=1 << 22)
            told.connections += 1
            for _ in range(dice.randint(1, 400)):
                if time.monotonic() > ends:
                    break
                told.bytes += await asyncio.wait_for(exchange(reader, writer, dice), 30)
                told.exchanges += 1
                now = time.monotonic()
                told.longest = max(told.longest, now - began - (late.total - before))
                began, before = now, late.total
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    finally:
        watch.cancel()


async def echo(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dice: random.Random
) -> int:
    """Some messages at once; all of them must come back."""
    sent = b"".join(message(dice) for _ in range(dice.choice((1, 1, 1, 3))))
    writer.write(sent)
    back = await reader.readexactly(len(sent))
    if back != sent:
        raise WrongBytes(f"{len(sent)} bytes came back changed")
    return 2 * len(sent)


async def redis(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dice: random.Random
) -> int:
    """SET and GET of one key (RESP2)."""
    key, value = b"soak-%d" % dice.randrange(1000), message(dice)[:65536] or b"x"
    for words in ((b"SET", key, value), (b"GET", key)):
        writer.write(b"*%d\r\n" % len(words))
        writer.write(b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
    expected = b"+OK\r\n$%d\r\n%s\r\n" % (len(value), value)
    if await reader.readexactly(len(expected)) != expected:
        raise WrongBytes("redis answers something else")
    return 2 * len(expected)


async def http(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dice: random.Random
) -> int:
    """A part of the blob, over a connection that is kept."""
    first = dice.randrange(len(BLOB))
    last = min(len(BLOB) - 1, first + len(message(dice)))
    request = f"GET /blob HTTP/1.1\r\nHost: soak\r\nRange: bytes={first}-{last}\r\n\r\n"
    writer.write(request.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 206"):
        raise WrongBytes(f"the web server answers {head[:60]!r}")
    body = await reader.readexactly(last - first + 1)
    wanted = BLOB[first : last + 1]
    if hashlib.sha256(body).digest() != hashlib.sha256(wanted).digest():
        raise WrongBytes(f"bytes {first} to {last} of the blob are others")
    return len(head) + len(body) + len(request)


def blocking_client(host: str, port: int, seconds: float, seed: int, told: Told) -> None:
    """As `echo`, with calls that block."""
    dice = random.Random(seed)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with socket.create_connection((host, port)) as one:
            told.connections += 1
            for _ in range(dice.randint(1, 200)):
                sent = message(dice)[: 1 << 15]
                began = time.monotonic()
                one.sendall(sent)
                back = bytearray()
                while len(back) < len(sent):
                    piece = one.recv(len(sent) - len(back))
                    if not piece:
                        raise WrongBytes("the stream ended early")
                    back += piece
                if back != sent:
                    raise WrongBytes(f"{len(sent)} bytes came back changed")
                told.longest = max(told.longest, time.monotonic() - began)
                told.exchanges += 1
                told.bytes += 2 * len(sent)


EXCHANGES: Final = {"echo": echo, "redis": redis, "http": http}


def main(role: str, host: str, port: int, seconds: float, seed: int) -> int:
    if role == "echo-server":
        asyncio.run(echo_server(host, port))
    if role == "blocking-server":
        blocking_server(host, port)
    told = Told()
    try:
        if role == "blocking":
            blocking_client(host, port, seconds, seed, told)
        else:
            asyncio.run(converse(host, port, seconds, seed, EXCHANGES[role], told))
    except (WrongBytes, OSError, EOFError, TimeoutError) as error:
        told.errors.append(f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(told)), flush=True)
    return 1 if told.errors else 0


if __name__ == "__main__":
    role, host, port, seconds, seed = sys.argv[1:]
    sys.exit(main(role, host, int(port), float(seconds), int(seed)))
