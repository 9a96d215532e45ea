"""Certificates as tests need them: a CA of its own, and folders the way certbot leaves them."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from codius_proxy.tls import CHAIN_FILE, KEY_FILE

AUTHORITY_FILE = "authority.pem"
ONE_DAY = datetime.timedelta(days=1)


class Authority:
    """Issues what a client's context of `trust` accepts."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA for tests")])
        self._certificate = (
            _builder(self._name, self._name, 30)
            .public_key(self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.issued = 0

    @property
    def pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, directory: Path, *names: str, days: int = 7) -> int:
        """Write a new certificate and its key; its serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (names or ("nobody",))[0][:64])])
        builder = _builder(subject, self._name, days).public_key(key.public_key())
        if names:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        directory.mkdir(parents=True, exist_ok=True)
        for path, content in (
            (directory / CHAIN_FILE, certificate.public_bytes(serialization.Encoding.PEM)),
            (
                directory / KEY_FILE,
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
            ),
        ):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.rename(path)
        self.issued += 1
        return certificate.serial_number

    def trust(self) -> ssl.SSLContext:
        """A client's context that accepts nothing else."""
        context = ssl.create_default_context(cadata=self.pem)
        context.set_alpn_protocols(["http/1.1"])
        return context


def make_contexts(directory: Path, *names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server with a certificate for these names, and of clients that trust it and no other."""
    authority = Authority()
    authority.issue(directory, *names)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / CHAIN_FILE, directory / KEY_FILE)
    (directory / AUTHORITY_FILE).write_text(authority.pem)
    return server, authority.trust()


def serial_of(connection: ssl.SSLObject | ssl.SSLSocket) -> int:
    """Which certificate a client was shown."""
    der = connection.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def _builder(subject: x509.Name, issuer: x509.Name, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + days * ONE_DAY) - ONE_DAY)
        .not_valid_after(now + days * ONE_DAY)
    )
