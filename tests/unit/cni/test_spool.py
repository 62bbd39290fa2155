# SPDX-License-Identifier: Apache-2.0
"""The spool: order, what is removed when, and what is set aside."""

import json
import os
from pathlib import Path

import pytest

from cni.config import Command
from cni.errors import CniError, ErrorCode
from cni.protocol import Frame, Reply, Request, encode_frame, failure
from cni.spool import Replayed, Spool, replay


def frame(container: str, command: bytes = b"DEL") -> bytes:
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container.encode(),
        "CNI_IFNAME": b"eth0",
        "CNI_NETNS": b"/x",
    }
    config = {"cniVersion": "1.1.0", "name": "pods", "type": "b", "cni.dev/attachments": []}
    return encode_frame(Frame(variables, json.dumps(config).encode()))


def put(folder: Path, time: int, content: bytes, command: str = "DEL") -> str:
    folder.mkdir(exist_ok=True)
    name = f"{time:020}-{time % 7}-{command}.frame"
    (folder / name).write_bytes(content)
    return name


class Agent:
    """Notes the containers it is asked about, and answers as told."""

    def __init__(self, answers: dict[str, Reply | None] | None = None) -> None:
        self.asked: list[str] = []
        self.answers = answers or {}

    def __call__(self, request: Request) -> Reply | None:
        self.asked.append(request.container_id or request.command)
        return self.answers.get(request.container_id, Reply())


def error(code: ErrorCode) -> Reply:
    return failure(CniError(code, "no"))


def test_missing_folder_is_an_empty_spool(tmp_path: Path) -> None:
    assert replay(Spool(tmp_path / "none"), Agent()) == Replayed()
    Spool(tmp_path / "none").sweep(0)


def test_oldest_first_and_removed_only_when_done(tmp_path: Path) -> None:
    names = [put(tmp_path, 10**n, frame(f"c{n}")) for n in range(12)]
    names.append(put(tmp_path, 10**12, frame("", b"GC"), "GC"))
    spool, seen = Spool(tmp_path), []

    class Watching(Agent):
        def __call__(self, request: Request) -> Reply | None:
            seen.append(len(spool.names()))
            return super().__call__(request)

    agent = Watching()
    assert replay(spool, agent).done == tuple(names)
    assert agent.asked == [*(f"c{n}" for n in range(12)), Command.GC]
    assert seen == list(range(13, 0, -1)) and spool.names() == []
    assert replay(spool, agent) == Replayed()


@pytest.mark.parametrize("code", [ErrorCode.TRY_AGAIN_LATER, ErrorCode.UNAVAILABLE])
def test_an_agent_that_is_not_ready_ends_the_replay(tmp_path: Path, code: ErrorCode) -> None:
    names = [put(tmp_path, n, frame(f"c{n}")) for n in range(3)]
    agent = Agent({"c1": error(code)})
    assert replay(Spool(tmp_path), agent) == Replayed((names[0],), tuple(names[1:]))
    assert agent.asked == ["c0", "c1"] and Spool(tmp_path).names() == names[1:]
    assert replay(Spool(tmp_path), Agent()).done == tuple(names[1:])


def test_a_busy_attachment_is_passed_over(tmp_path: Path) -> None:
    names = [put(tmp_path, n, frame(f"c{n}")) for n in range(3)]
    replayed = replay(Spool(tmp_path), Agent({"c1": None}))
    assert (replayed.done, replayed.busy) == ((names[0], names[2]), (names[1],))
    assert Spool(tmp_path).names() == [names[1]]


def test_what_cannot_be_done_is_set_aside_with_the_reason(tmp_path: Path) -> None:
    whole = frame("c")
    bad = [
        put(tmp_path, 0, b""),
        put(tmp_path, 1, whole[:-1]),
        put(tmp_path, 2, whole + b"x"),
        put(tmp_path, 3, frame("c", b"ADD")),
        put(tmp_path, 4, frame("-")),
        put(tmp_path, 5, whole.replace(b"1.1.0", b"9.9.9")),
        put(tmp_path, 6, b"x" * (2 << 20)),
        put(tmp_path, 7, frame("refused")),
    ]
    link = f"{8:020}-1-DEL.frame"
    (tmp_path / link).symlink_to("/etc/passwd")
    fifo = f"{9:020}-1-DEL.frame"
    os.mkfifo(tmp_path / fifo)
    good = put(tmp_path, 10, whole)
    agent = Agent({"refused": error(ErrorCode.INTERNAL)})
    replayed = replay(Spool(tmp_path), agent)
    assert replayed == Replayed(done=(good,), bad=(*bad, link, fifo))
    assert agent.asked == ["refused", "c"] and Spool(tmp_path).names() == []
    for name in replayed.bad:
        assert os.path.lexists(tmp_path / "bad" / name)
        assert (tmp_path / "bad" / f"{name}.reason").read_text().strip()
    assert (tmp_path / "bad" / bad[1]).read_bytes() == whole[:-1]


def test_only_abandoned_half_files_are_swept(tmp_path: Path) -> None:
    now = 1_000_000.0
    old, new = (tmp_path / f".{n:020}-1-DEL.frame" for n in (1, 2))
    foreign = tmp_path / ".keep"
    for path, age in ((old, 4000), (new, 10), (foreign, 9999)):
        path.write_bytes(b"BRC")
        os.utime(path, (now - age, now - age))
    name = put(tmp_path, 3, frame("c"))
    os.utime(tmp_path / name, (0, 0))
    Spool(tmp_path).sweep(now)
    assert sorted(os.listdir(tmp_path)) == sorted([new.name, foreign.name, name])
