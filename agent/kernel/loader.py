# SPDX-License-Identifier: Apache-2.0
"""Compiles the programs in a short-lived child, keeps the bytecode, loads it with bpf(2).

LLVM can take its process down and holds tens of megabytes, so it runs in ``loader_child`` alone.
The child gives back *bytecode* and not, as first planned, descriptors over a UNIX socket: the
instructions are then checked, given this process's map descriptors (``agent.kernel.bytecode``),
named and loaded here. That needs no privilege in the child, gives the verifier's log at first
hand, and the bytecode can be kept: an agent that starts again with unchanged sources needs
neither LLVM nor headers. The name it is kept under covers everything that goes into it.
"""

import ctypes
import errno
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import agent.kernel
from agent.kernel import bpf, headers
from agent.kernel.bytecode import FORMAT, Bytecode, BytecodeError, placeholder_defines
from agent.kernel.syscall import AttachType, BpfError, ProgramType

LICENCE: Final = "Dual BSD/GPL"

_LOG_BYTES: Final = 16 << 20
_LOG_SHOWN: Final = 60  # lines: the end of a log says what was refused
_KEPT: Final = 64  # files; a node needs a handful
_FLAGS: Final = ("-Wno-macro-redefined", "-Werror=implicit-function-declaration")


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program to load: function ``name`` of the file ``<name>.c``."""

    name: str
    type: ProgramType = ProgramType.SCHED_CLS
    attach_type: AttachType = AttachType.NONE
    attach_to: int = 0
    """Id of the kernel function in the kernel's BTF, for tracing programs."""


class LoadError(Exception):
    """A program could not be compiled, or the kernel refused it.

    ``program`` names it ("" where the child failed as a whole), ``stage`` is ``compile``,
    ``verify`` or ``pin``, ``log`` is all that the compiler or the verifier said.
    """

    def __init__(self, program: str, stage: str, reason: str, log: str) -> None:
        self.program = program
        self.stage = stage
        self.log = log
        end = "\n".join(log.strip().splitlines()[-_LOG_SHOWN:])
        super().__init__(f"{stage} of program {program or '(any)'}: {reason}\n{end}".rstrip())


class Loader:
    """Loads programs; ``work_dir`` holds the header tree and the kept bytecode.

    The folder is made if missing, for root alone. ``sources`` is the folder of the C files.
    ``timeout`` in seconds bounds one run of the compiler.
    """

    def __init__(
        self,
        work_dir: Path,
        *,
        sources: Path = headers.SOURCES,
        python: str = sys.executable,
        timeout: float = 120.0,
    ) -> None:
        self._work = work_dir
        self._kept = work_dir / "programs"
        self._sources = sources
        self._python = python
        self._timeout = timeout
        self.pins: dict[str, Path] = {}
        """Where the programs of the last `load` with pins are pinned, by name."""

    def load(
        self,
        programs: Sequence[ProgramSpec],
        defines: Mapping[str, int | str],
        maps: Mapping[str, int],
        pins: Path | None = None,
    ) -> dict[str, int]:
        """Load all of ``programs`` with these macros and map descriptors: {name: descriptor}.

        With ``pins``, a folder on a bpffs, they are pinned there, and a program that is there
        already with the same code and the very same maps is taken as it is: the verifier needs
        the best part of a second for a large one, and a new agent needs none of it. Pins of
        earlier versions of these programs are removed.

        All or none: where one fails, LoadError is raised and nothing stays loaded.
        """
        compiled = self.compile([spec.name for spec in programs], defines, sorted(maps))
        loaded: dict[str, int] = {}
        try:
            for spec in programs:
                code = compiled[spec.name]
                if pins is None:
                    loaded[spec.name] = _load(spec, code, maps)
                else:
                    pin = pins / f"{spec.name}-{_fingerprint(spec, code, maps)}"
                    loaded[spec.name] = _adopt_or_load(spec, code, maps, pin)
                    self.pins[spec.name] = pin
        except BaseException:
            for descriptor in loaded.values():
                os.close(descriptor)
            raise
        return loaded

    def compile(
        self, names: Sequence[str], defines: Mapping[str, int | str], maps: Sequence[str]
    ) -> dict[str, Bytecode]:
        """Bytecode of each program, kept or newly compiled. Raises LoadError."""
        shared = self._shared_digest(defines, maps)
        files = {name: self._kept / self._key(name, shared) for name in names}
        compiled = {name: code for name in names if (code := _read(files[name])) is not None}
        missing = [name for name in names if name not in compiled]
        if missing:
            for name, code in self._compile(missing, defines, maps).items():
                compiled[name] = code
                self._keep(files[name], code)
        return compiled

    def _compile(
        self, names: Sequence[str], defines: Mapping[str, int | str], maps: Sequence[str]
    ) -> dict[str, Bytecode]:
        try:
            tree = headers.build(self._work / "headers")
        except headers.HeadersMissing as error:
            raise LoadError("", "compile", str(error), "") from error
        macros = {**defines, **placeholder_defines(maps)}
        request = {
            "flags": [f"-I{self._sources}", *_FLAGS, *(f"-D{k}={v}" for k, v in macros.items())],
            "programs": [{"name": n, "path": str(self._sources / f"{n}.c")} for n in names],
        }
        output, log, status = self._run(json.dumps(request), tree)
        compiled: dict[str, Bytecode] = {}
        for line in output.splitlines():
            answer = json.loads(line)
            name = answer["name"]
            try:
                compiled[name] = Bytecode(bytes.fromhex(answer["instructions"]), tuple(maps))
            except BytecodeError as error:
                raise LoadError(name, "compile", str(error), log) from error
        unfinished = [name for name in names if name not in compiled]
        if unfinished:
            raise LoadError(unfinished[0], "compile", status, log)
        return compiled

    def _run(self, request: str, tree: Path) -> tuple[str, str, str]:
        environment = {
            "BCC_KERNEL_SOURCE": str(tree),
            "LC_ALL": "C.UTF-8",
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        }
        root = Path(agent.kernel.__file__).resolve().parents[2]
        try:
            child = subprocess.run(
                [self._python, "-m", "agent.kernel.loader_child"],
                input=request,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=root,
                env=environment,
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            log = (error.stderr or b"").decode(errors="replace")
            raise LoadError("", "compile", f"not done after {self._timeout:g} s", log) from error
        except OSError as error:
            raise LoadError("", "compile", f"{self._python}: {error}", "") from error
        code = child.returncode
        status = f"the compiler was killed by signal {-code}" if code < 0 else f"status {code}"
        return child.stdout, child.stderr, status

    def _shared_digest(self, defines: Mapping[str, int | str], maps: Sequence[str]) -> bytes:
        digest = hashlib.sha256()
        facts = [FORMAT, platform.machine(), _FLAGS, sorted(defines.items()), list(maps)]
        digest.update(repr(facts).encode())
        for root in (self._sources / "lib", headers.SOURCES / "include"):
            for path in sorted(root.rglob("*.h")):
                digest.update(b"\0" + str(path.relative_to(root)).encode() + b"\0")
                digest.update(path.read_bytes())
        return digest.digest()

    def _key(self, name: str, shared: bytes) -> str:
        path = self._sources / f"{name}.c"
        try:
            source = path.read_bytes()
        except OSError as error:
            raise LoadError(name, "compile", f"{path}: {error.strerror}", "") from error
        return f"{name}-{hashlib.sha256(shared + source).hexdigest()[:32]}"

    def _keep(self, path: Path, code: Bytecode) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(code.encode())
        os.replace(temporary, path)
        by_age = sorted(self._kept.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in by_age[_KEPT:]:
            old.unlink(missing_ok=True)


def _read(path: Path) -> Bytecode | None:
    try:
        code = Bytecode.decode(path.read_bytes())
        os.utime(path)
    except (OSError, BytecodeError):
        return None  # compiled again: a kept program is a short cut and never needed
    return code


def _adopt_or_load(spec: ProgramSpec, code: Bytecode, maps: Mapping[str, int], pin: Path) -> int:
    present = _pinned(spec, pin)
    if present is not None:
        return present
    program = _load(spec, code, maps)
    try:
        pin.parent.mkdir(parents=True, exist_ok=True)
        bpf.object_pin(program, pin)
        for other in pin.parent.glob(f"{spec.name}-*"):
            if other != pin:
                other.unlink(missing_ok=True)
    except OSError as error:
        os.close(program)
        raise LoadError(spec.name, "pin", str(error), "") from error
    return program


def _pinned(spec: ProgramSpec, pin: Path) -> int | None:
    try:
        found = bpf.object_get(pin)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise LoadError(spec.name, "pin", str(error), "") from error
    kind = bpf.object_kind(found)
    if kind != "prog":
        os.close(found)
        raise LoadError(spec.name, "pin", f"{pin} is a {kind} and no program", "")
    return found


def _fingerprint(spec: ProgramSpec, code: Bytecode, maps: Mapping[str, int]) -> str:
    # A map's id is never given twice until the next boot, which ends all pins too.
    numbers = [(name, bpf.map_info(maps[name]).id) for name in sorted(code.used & maps.keys())]
    facts = [
        spec.name,
        int(spec.type),
        int(spec.attach_type),
        spec.attach_to,
        LICENCE,
        code.maps,
        numbers,
    ]
    return hashlib.sha256(repr(facts).encode() + code.instructions).hexdigest()[:32]


def _load(spec: ProgramSpec, code: Bytecode, maps: Mapping[str, int]) -> int:
    try:
        instructions = code.relocate(maps)
    except BytecodeError as error:
        raise LoadError(spec.name, "compile", str(error), "") from error
    name = f"bristle_{spec.name}"
    try:
        return bpf.program_load(
            spec.type,
            instructions,
            name,
            licence=LICENCE,
            expected_attach_type=spec.attach_type,
            attach_btf_id=spec.attach_to,
        )
    except BpfError as error:
        first = error
    # Loaded once more, to be told why; writing the log costs time and memory in the good case.
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        return bpf.program_load(
            spec.type,
            instructions,
            name,
            licence=LICENCE,
            expected_attach_type=spec.attach_type,
            attach_btf_id=spec.attach_to,
            log=log,
            log_level=1,
        )
    except BpfError:
        text = log.value.decode(errors="replace")
        raise LoadError(spec.name, "verify", str(first), text) from first
