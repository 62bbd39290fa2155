# SPDX-License-Identifier: Apache-2.0
"""The files that the image is made of hang together; `make image` builds and runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools.oci_bundle import BundleError, Image, runtime_config, seccomp_filter

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def copied() -> set[str]:
    """Paths of the tree that the Dockerfile copies."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
    return {source.rstrip("/") for line in lines for source in line.split()}


def test_everything_copied_exists_and_is_let_through() -> None:
    # The name by which BuildKit finds it, whatever the build's context is.
    ignore = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    for path in copied():
        assert (ROOT / path).exists(), path
        parents = {str(parent) for parent in [Path(path), *Path(path).parents]}
        assert parents & allowed, f"deploy/Dockerfile.dockerignore hides {path}"
    assert "*" in ignore


def test_every_package_of_the_wheel_is_copied_and_keeps_its_sources() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(wheel["packages"]) <= copied()
    (ours,) = re.findall(r"^RUN python3 trim.py \S+ (.*)$", DOCKERFILE, re.M)
    assert set(ours.split()) == set(wheel["packages"])
    for source in wheel["shared-data"]:
        assert (ROOT / source).exists(), source


def test_requirements_are_those_of_the_project() -> None:
    command = [sys.executable, "deploy/requirements.py", "--build", "pyproject.toml"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    assert lines.splitlines() == expected


def test_the_image_names_its_version_and_starts_without_a_shell() -> None:
    assert re.search(rf"^ARG VERSION={re.escape(PROJECT['project']['version'])}$", DOCKERFILE, re.M)
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)
    assert json.loads(entrypoint) == ["/opt/bristle/bin/bristle"]
    assert "amd64" not in re.sub(r"^#.*$", "", DOCKERFILE, flags=re.M)
    assert "x86_64" not in DOCKERFILE


# ---- what `make image` runs ------------------------------------------------------------------

IMAGE = Image(Path("/image"), ["/bin/agent"], ["PATH=/bin"])


def container(**security: object) -> dict[str, object]:
    capabilities = {"drop": ["ALL"], "add": ["BPF"]}
    return {
        "name": "agent",
        "args": ["--node", "$(NODE)"],
        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "securityContext": {"capabilities": capabilities, **security},
        "volumeMounts": [
            {"name": "a", "mountPath": "/a", "readOnly": True},
            {"name": "b", "mountPath": "/b", "mountPropagation": "HostToContainer"},
        ],
    }


def config(item: dict[str, object]) -> dict[str, object]:
    return runtime_config(
        item, IMAGE, volumes={"a": Path("/x"), "b": Path("/y")}, fields={"spec.nodeName": "n"},
        cgroup="/c", seccomp=None,
    )  # fmt: skip


def test_a_container_as_its_runtime_would_make_it() -> None:
    made = config(container(readOnlyRootFilesystem=True, allowPrivilegeEscalation=False))
    process, root, mounts = made["process"], made["root"], made["mounts"]
    assert isinstance(process, dict) and isinstance(mounts, list)
    assert process["args"] == ["/bin/agent", "--node", "n"]
    assert process["capabilities"]["bounding"] == ["CAP_BPF"]
    assert process["noNewPrivileges"] is True
    assert root == {"path": "/image", "readonly": True}
    options = {mount["destination"]: mount["options"] for mount in mounts}
    assert options["/a"] == ["rbind", "rprivate", "ro"]
    assert options["/b"] == ["rbind", "rslave", "rw"]


@pytest.mark.parametrize("item", [container(privileged=True), container(procMount="Unmasked"),
                                  {**container(), "lifecycle": {}}])  # fmt: skip
def test_what_is_not_understood_is_refused(item: dict[str, object]) -> None:
    with pytest.raises(BundleError):
        config(item)


def test_the_filter_depends_on_capabilities(tmp_path: Path) -> None:
    profile = tmp_path / "seccomp.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ERRNO",
                "archMap": [],
                "syscalls": [
                    {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                    {
                        "names": ["bpf"],
                        "action": "SCMP_ACT_ALLOW",
                        "includes": {"caps": ["CAP_BPF"]},
                    },
                    {
                        "names": ["bpf"],
                        "action": "SCMP_ACT_ERRNO",
                        "excludes": {"caps": ["CAP_BPF"]},
                    },
                ],
            }
        )
    )

    def names(*capabilities: str) -> list[tuple[str, str]]:
        rules = seccomp_filter(profile, capabilities)["syscalls"]
        return [(rule["names"][0], rule["action"][9:]) for rule in rules]

    assert names("CAP_BPF") == [("read", "ALLOW"), ("bpf", "ALLOW")]
    assert names() == [("read", "ALLOW"), ("bpf", "ERRNO")]
