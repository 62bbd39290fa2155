# SPDX-License-Identifier: Apache-2.0
"""The only process that has LLVM in it: compiles programs and prints their bytecode, then ends.

Started by ``agent.kernel.loader`` as ``python -m agent.kernel.loader_child``. Standard input is one
JSON object ``{"flags": [...], "programs": [{"name", "path"}]}``; for each program one line
``{"name", "instructions": hex}`` goes to standard output as soon as it is ready, so that the
parent knows which one took the process down. What the compiler says goes to standard error.
"""

import json
import os
import resource
import sys
from collections.abc import Mapping
from typing import IO, Any, NoReturn


def compile_program(path: str, name: str, flags: list[str]) -> bytes:
    """Instructions of function ``name`` in the C file ``path``; 8 bytes each."""
    from bcc import BPF

    module = BPF(src_file=path, cflags=flags)
    return bytes(module.dump_func(name))


def serve(request: Mapping[str, Any], answers: IO[str]) -> int:
    """Compile everything that ``request`` names. Returns the exit status."""
    for program in request["programs"]:
        try:
            code = compile_program(program["path"], program["name"], request["flags"])
        except ImportError as error:
            print(
                f"{error}: install python3-bpfcc and make the environment with"
                " /usr/bin/python3 -m venv --system-site-packages",
                file=sys.stderr,
            )
            return 1
        except Exception as error:  # bcc raises nothing narrower
            print(f"{program['path']}: {error}", file=sys.stderr)
            return 1
        print(json.dumps({"name": program["name"], "instructions": code.hex()}), file=answers)
        answers.flush()
    return 0


def main() -> NoReturn:
    """Serve one request and exit without LLVM's tear-down, which costs time and can crash."""
    # LLVM prints to descriptor 1 in places; the answers must stay clean.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = serve(json.load(sys.stdin), answers)
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
