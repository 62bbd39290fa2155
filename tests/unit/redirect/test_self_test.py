# SPDX-License-Identifier: Apache-2.0
"""The self-test's process: whatever becomes of it, an answer or SelfTestError, and nothing left."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.selftest import CGROUP, Outcome, SelfTestError, run_self_test

Child = Callable[[str], None]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """Makes some Python code the self-test's process; `work_dir` and `cgroup` are its arguments."""

    def be(code: str) -> None:
        script = tmp_path / "child"
        script.write_text(f"#!{sys.executable}\nimport os, sys, time\n{code}\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return be


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    folder = tmp_path / "cgroup"
    folder.mkdir()
    return folder


def test_its_answer(child: Child, tmp_path: Path, cgroup: Path) -> None:
    child('print(\'[{"name": "a", "blocking": false, "detail": ""},'
          ' {"name": "b", "blocking": true, "detail": "stalls"}]\')')  # fmt: skip
    found = run_self_test(tmp_path, cgroup)
    assert found == [Outcome("a", False), Outcome("b", True, "stalls")]


def test_it_is_told_where(child: Child, tmp_path: Path, cgroup: Path) -> None:
    child("sys.exit(' '.join(sys.argv[-2:]))")
    with pytest.raises(SelfTestError, match=re.escape(f"{tmp_path} {cgroup}")):
        run_self_test(tmp_path, cgroup)


@pytest.mark.parametrize(
    "printed",
    ["", "rubbish", "null", "7", "{}", "[1]", '[{"name": "a"}]', '["a"]', "\\xff\\xfe", "[[[["],
)
def test_rubbish(child: Child, tmp_path: Path, cgroup: Path, printed: str) -> None:
    child(f"sys.stdout.buffer.write(b'{printed}')")
    with pytest.raises(SelfTestError):
        run_self_test(tmp_path, cgroup)


@pytest.mark.parametrize(
    "wrong",
    [
        '{"name": 1, "blocking": false, "detail": ""}',
        '{"name": "a", "blocking": "no", "detail": ""}',
        '{"name": "a", "blocking": false, "detail": null}',
    ],
)
def test_a_value_of_another_type(child: Child, tmp_path: Path, cgroup: Path, wrong: str) -> None:
    child(f"print('[{wrong}]')")
    with pytest.raises(SelfTestError):
        run_self_test(tmp_path, cgroup)


def test_no_check_at_all_is_no_success(child: Child, tmp_path: Path, cgroup: Path) -> None:
    child("print('[]')")
    with pytest.raises(SelfTestError):
        run_self_test(tmp_path, cgroup)


def test_it_fails_and_says_why(child: Child, tmp_path: Path, cgroup: Path) -> None:
    child("print('first', file=sys.stderr); sys.exit('last')")
    with pytest.raises(SelfTestError, match=r"^last$"):
        run_self_test(tmp_path, cgroup)


def test_it_fails_after_an_answer(child: Child, tmp_path: Path, cgroup: Path) -> None:
    child('print(\'[{"name": "a", "blocking": false, "detail": ""}]\', flush=True); os.abort()')
    with pytest.raises(SelfTestError):
        run_self_test(tmp_path, cgroup)


def test_it_dies(child: Child, tmp_path: Path, cgroup: Path) -> None:
    child("os.kill(os.getpid(), 9)")
    with pytest.raises(SelfTestError, match=r"^status -9$"):
        run_self_test(tmp_path, cgroup)


def test_it_hangs(child: Child, tmp_path: Path, cgroup: Path) -> None:
    pid = tmp_path / "pid"
    child(f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    with pytest.raises(SelfTestError, match=r"not done after 0.5 s"):
        run_self_test(tmp_path, cgroup, timeout=0.5)
    assert not pid.exists() or not Path("/proc", pid.read_text()).exists()


def test_it_cannot_be_started(
    tmp_path: Path, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(SelfTestError, match="absent"):
        run_self_test(tmp_path, cgroup)


@pytest.mark.parametrize("end", ["print('[]')", "os.kill(os.getpid(), 9)", "time.sleep(600)"])
def test_no_cgroup_is_left(child: Child, tmp_path: Path, cgroup: Path, end: str) -> None:
    former, others = cgroup / f"{CGROUP}1", cgroup / "others"
    former.mkdir()
    others.mkdir()
    child(f"os.mkdir(sys.argv[-1] + '/{CGROUP}' + str(os.getpid()))\n{end}")
    with pytest.raises(SelfTestError):
        run_self_test(tmp_path, cgroup, timeout=0.5)
    assert list(cgroup.iterdir()) == [others]
