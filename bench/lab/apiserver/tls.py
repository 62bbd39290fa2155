# SPDX-License-Identifier: Apache-2.0
"""A certificate authority of the server's own, made with openssl(1)."""

from __future__ import annotations

import ipaddress
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lab.netns import LabError

DAYS = "30"
CURVE = "prime256v1"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in PEM: the authority's certificate, the server's certificate and its key."""

    ca: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """For the server's side of connections."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.load_cert_chain(self.certificate, self.key)
        made.set_alpn_protocols(["http/1.1"])
        return made


def make(folder: Path, names: Sequence[str]) -> Certificates:
    """Makes an authority and a server certificate for these addresses and DNS names.

    What is in the folder already is used again, so that a server that comes back is the same.
    Raises LabError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    if made.certificate.exists():
        return made
    authority = folder / "ca.key"
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{CURVE}", "-nodes"),
        *("-keyout", str(authority), "-out", str(made.ca), "-days", DAYS),
        *("-subj", "/CN=kubernetes", "-addext", "basicConstraints=critical,CA:TRUE"),
        *("-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
    )
    request, extensions = folder / "server.csr", folder / "server.ext"
    _openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{CURVE}", "-nodes"),
        *("-keyout", str(made.key), "-out", str(request), "-subj", "/CN=kube-apiserver"),
    )
    alternatives = ",".join(_alternative(name) for name in names)
    extensions.write_text(
        f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth\n"
        "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        "authorityKeyIdentifier=keyid\n"
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(made.ca), "-CAkey", str(authority)),
        *("-CAcreateserial", "-out", str(made.certificate), "-days", DAYS),
        *("-extfile", str(extensions)),
    )
    return made


def _alternative(name: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"openssl {arguments[0]}: {done.stderr.strip()}")
