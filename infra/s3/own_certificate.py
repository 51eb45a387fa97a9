"""The certificate by which SeaweedFS's own parts know each other, and its file `security.toml` that asks for it.

Master, volume server and filer ask for no credentials: who reaches one of their ports, HTTP or gRPC, reads and writes
everything. So each of these ports takes only TLS connections whose client shows this one certificate. All parts are one
process, which gets a fresh certificate at each start.
"""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_CERTIFICATE, _KEY, _SECURITY = "own.crt", "own.key", "security.toml"

# Source: weed/command/scaffold/security.toml of SeaweedFS.
_GRPC = ("master", "volume", "filer", "s3", "admin", "worker", "client")
_HTTPS = ("master", "volume", "filer", "admin")

# It ends with the process; clocks of one machine may still be set back.
_VALID = timedelta(days=3650)
_EARLIER = timedelta(days=1)


def write(folder: Path) -> None:
    """Write a new certificate with its key, and `security.toml`, into the folder in which the server will run.

    All are for this user alone. The server reads its settings there, before `~/.seaweedfs` and `/etc/seaweedfs`.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "enginehouse-seaweedfs")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    write_private(
        folder / _KEY, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    write_private(folder / _CERTIFICATE, certificate.public_bytes(pem))
    write_private(folder / _SECURITY, _security().encode())


def _security() -> str:
    pair, ca = f'cert = "{_CERTIFICATE}"\nkey = "{_KEY}"\n', f'ca = "{_CERTIFICATE}"\n'
    return "".join(
        (
            f"[grpc]\n{ca}",
            *(f"[grpc.{part}]\n{pair}" for part in _GRPC),
            f"[https.client]\nenabled = true\n{pair}{ca}",
            *(f"[https.{part}]\n{pair}{ca}" for part in _HTTPS),
        )
    )


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step by one that this user alone may read."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    fresh.replace(path)
