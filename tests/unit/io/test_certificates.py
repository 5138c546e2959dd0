"""Certificates of a session, and that their keys leave no trace."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from raskid.io import certificates
from raskid.io.certificates import VALID_DAYS, client_context, make_certificate, server_context
from tests.unit.io.ends import descriptors


def test_what_is_in_a_certificate() -> None:
    pem, key = make_certificate(["head.example", "127.0.0.1", "::1", "127.0.0.1"])
    certificate = x509.load_pem_x509_certificate(pem)
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.public_key().curve.name == "secp256r1"  # type: ignore[union-attr]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["head.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(a) for a in ("127.0.0.1", "::1")]
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < now
    left = certificate.not_valid_after_utc - now
    assert datetime.timedelta(days=VALID_DAYS - 1) < left <= datetime.timedelta(days=VALID_DAYS)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    certificate.verify_directly_issued_by(certificate)
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_no_two_are_alike() -> None:
    one, two = make_certificate(["a"]), make_certificate(["a"])
    assert one[0] != two[0] and one[1] != two[1]


def test_a_certificate_needs_a_host() -> None:
    with pytest.raises(ValueError, match="at least one host"):
        make_certificate([])


def test_contexts() -> None:
    pem, key = make_certificate(["localhost"])
    client, server = client_context(pem), server_context(pem, key)
    for context in (client, server):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert client.verify_mode is ssl.CERT_REQUIRED and not client.check_hostname
    assert len(client.get_ca_certs(binary_form=True)) <= 1
    assert server.verify_mode is ssl.CERT_NONE
    assert server_context(pem, key, mutual=True).verify_mode is ssl.CERT_REQUIRED
    client_context(pem, key)


def test_a_key_that_does_not_fit() -> None:
    pem, _ = make_certificate(["a"])
    _, key = make_certificate(["a"])
    with pytest.raises(ssl.SSLError):
        server_context(pem, key)


@pytest.mark.parametrize("memory", [True, False])
def test_keys_are_readable_for_a_moment_and_for_us_only(
    memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    before = descriptors()
    with certificates._for_a_moment(b"secret") as path:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert Path(path).read_bytes() == b"secret"
        assert memory or Path(path).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), certificates._for_a_moment(b"secret"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    assert descriptors() == before
    server_context(*make_certificate(["a"]))
    assert list(tmp_path.iterdir()) == []


def test_cryptography_is_loaded_only_when_a_certificate_is_made() -> None:
    source = str(Path(certificates.__file__).parents[2])
    program = "import sys; import raskid.io.certificates; sys.exit('cryptography' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": source}
    assert subprocess.run([sys.executable, "-c", program], check=False, env=environment).returncode == 0
