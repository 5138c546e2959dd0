"""A certificate for one session: it signs itself, and whoever has the session's file trusts it and no other.

There is no authority and no name to check: the certificate itself, handed over with the token, says who is at the
other end. Keys are on a disk only for the moment in which the TLS library reads them, where memory files do not exist.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

VALID_DAYS = 30
#: Clocks of other hosts may be behind.
BEFORE = datetime.timedelta(hours=1)


def make_certificate(hosts: Iterable[str]) -> tuple[bytes, bytes]:
    """A new self-signed certificate for these host names and addresses, and its key, both as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    names = [_general_name(host) for host in dict.fromkeys(hosts)]
    if not names:
        raise ValueError("a certificate needs at least one host")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "raskid session")])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def server_context(certificate_pem: bytes, key_pem: bytes, mutual: bool = False) -> ssl.SSLContext:
    """TLS 1.3 for listeners; with `mutual`, only whoever has the session's key as well may connect."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    # Tickets would be sent after the handshake, unasked: a client that closes before it read them loses its last bytes.
    context.num_tickets = 0
    _load(context, certificate_pem, key_pem)
    if mutual:
        _trust_only(context, certificate_pem)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(certificate_pem: bytes, key_pem: bytes | None = None) -> ssl.SSLContext:
    """TLS 1.3 for connections to whoever holds this certificate's key; with `key_pem` we present it as well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    # The certificate is the identity; addresses change on the way through tunnels and private networks.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _trust_only(context, certificate_pem)
    if key_pem is not None:
        _load(context, certificate_pem, key_pem)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3


def _trust_only(context: ssl.SSLContext, certificate_pem: bytes) -> None:
    context.load_verify_locations(cadata=certificate_pem.decode("ascii"))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _load(context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes) -> None:
    with _for_a_moment(certificate_pem + key_pem) as path:
        context.load_cert_chain(path)


@contextlib.contextmanager
def _for_a_moment(data: bytes) -> Iterator[str]:
    """A path from which only this user can read `data`, in memory where the system has memory files."""
    try:
        # `CLOEXEC` is the default: a process started meanwhile does not get it.
        fd = os.memfd_create("raskid-key")
    except (AttributeError, OSError):
        fd = -1
    path = f"/proc/self/fd/{fd}"
    named = fd < 0 or not os.path.exists(path)
    if named:
        if fd >= 0:
            os.close(fd)
        fd, path = tempfile.mkstemp(prefix="raskid-")
    try:
        os.fchmod(fd, 0o600)
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        yield path
    finally:
        if named:
            os.unlink(path)
        os.close(fd)
