"""Certificates by name, renewed in place; handshakes without a socket."""

from __future__ import annotations

import logging
import ssl
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from codius_proxy.config import CertificateError
from codius_proxy.tls import CHAIN_FILE, KEY_FILE, LOOK_EVERY, Certificates, hush_strange_names
from tests.harness.certificates import Authority, serial_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def handshake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    name: str | None,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLObject:
    """The client's end of a complete handshake; ssl.SSLError when there is none."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    if name is None:
        client.check_hostname = False
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    pending = [theirs, ours]
    while pending:
        for end in list(pending):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.remove(end)
    ours.write(b"!")  # and with it the tickets of 1.3
    assert theirs.read(1) == b"!"
    return theirs


def lock(key: bytes) -> bytes:
    """The same, under a passphrase nobody here knows."""
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def for_x400() -> bytes:
    """A certificate for a kind of name that nobody has."""
    key = ec.generate_private_key(ec.SECP256R1())
    nobody = x509.Name([])
    names = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes.fromhex("3004a3020500"))
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(nobody, nobody, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def test_the_name_chooses_the_certificate(tmp_path: Path, authority: Authority) -> None:
    host = authority.issue(tmp_path / "host", "host.example", "*.host.example")
    other = authority.issue(tmp_path / "other", "Other.Example")
    context = Certificates(tmp_path).context
    for name, serial in {
        "host.example": host,
        "pod.host.example": host,
        "HOST.example": host,
        "other.example": other,
    }.items():
        found = handshake(context, authority.trust(), name)
        assert serial_of(found) == serial
        assert found.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("name", ["deep.pod.host.example", "elsewhere.example"])
def test_a_name_that_is_not_covered_is_shown_whose_host_it_is(
    name: str, tmp_path: Path, authority: Authority
) -> None:
    authority.issue(tmp_path / "host", "host.example", "*.host.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(Certificates(tmp_path).context, authority.trust(), name)


def test_a_client_without_a_name_gets_the_first_one(tmp_path: Path, authority: Authority) -> None:
    serial = authority.issue(tmp_path / "a", "host.example")
    authority.issue(tmp_path / "b", "other.example")
    assert serial_of(handshake(Certificates(tmp_path).context, authority.trust(), None)) == serial


def test_of_two_for_one_name_the_longer_one_is_served(tmp_path: Path, authority: Authority) -> None:
    serial = authority.issue(tmp_path / "a", "host.example", days=9)
    authority.issue(tmp_path / "b", "host.example", days=8)
    assert serial_of(handshake(Certificates(tmp_path).context, authority.trust(), "host.example")) == serial


def test_a_renewed_certificate_is_taken_up_and_a_new_one_found(tmp_path: Path, authority: Authority) -> None:
    clock = Clock()
    authority.issue(tmp_path / "host", "host.example")
    context = Certificates(tmp_path, clock=clock).context
    renewed = authority.issue(tmp_path / "host", "host.example")
    added = authority.issue(tmp_path / "other", "other.example")
    clock.now += LOOK_EVERY * 2
    assert serial_of(handshake(context, authority.trust(), "host.example")) == renewed
    assert serial_of(handshake(context, authority.trust(), "other.example")) == added


def test_a_directory_may_be_filled_later(tmp_path: Path, authority: Authority) -> None:
    clock = Clock()
    context = Certificates(tmp_path, clock=clock).context
    with pytest.raises(ssl.SSLError):
        handshake(context, authority.trust(), "host.example")
    serial = authority.issue(tmp_path / "host", "host.example")
    clock.now += LOOK_EVERY * 2
    assert serial_of(handshake(context, authority.trust(), "host.example")) == serial


def test_a_certificate_that_is_taken_away_is_no_longer_served(tmp_path: Path, authority: Authority) -> None:
    clock = Clock()
    authority.issue(tmp_path / "host", "host.example")
    certificates = Certificates(tmp_path, clock=clock)
    (tmp_path / "host" / CHAIN_FILE).unlink()
    certificates.refresh()
    assert certificates.choose("host.example") is None


def test_a_broken_renewal_is_told_once_and_the_old_certificate_stays(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    serial = authority.issue(tmp_path / "host", "host.example")
    certificates = Certificates(tmp_path)
    authority.issue(tmp_path / "elsewhere", "host.example")
    (tmp_path / "elsewhere" / KEY_FILE).rename(tmp_path / "host" / KEY_FILE)
    (tmp_path / "elsewhere" / CHAIN_FILE).unlink()
    for _ in range(3):
        certificates.refresh()
    told = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1
    assert f"{tmp_path / 'host' / KEY_FILE} is not the key of" in told[0]
    assert serial_of(handshake(certificates.context, authority.trust(), "host.example")) == serial


@pytest.mark.parametrize("written", [0, 0.5, 0.99], ids=["nothing", "half", "nearly all"])
@pytest.mark.parametrize("first", [CHAIN_FILE, KEY_FILE])
def test_a_renewal_is_taken_up_when_all_of_it_is_written(
    first: str, written: float, tmp_path: Path, authority: Authority
) -> None:
    """Its files are written in place, one after the other, and somebody connects after each piece."""
    clock = Clock()
    old = authority.issue(tmp_path / "host", "host.example")
    new = authority.issue(tmp_path.with_name("renewed"), "host.example")
    context = Certificates(tmp_path, clock=clock).context
    for file in (first, KEY_FILE if first == CHAIN_FILE else CHAIN_FILE):
        whole = (tmp_path.with_name("renewed") / file).read_bytes()
        for piece in (whole[: int(len(whole) * written)], whole):
            assert serial_of(handshake(context, authority.trust(), "host.example")) == old
            (tmp_path / "host" / file).write_bytes(piece)
            clock.now += LOOK_EVERY * 2
    assert serial_of(handshake(context, authority.trust(), "host.example")) == new


def test_a_key_that_went_away_leaves_the_certificate_in_use(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    serial = authority.issue(tmp_path / "host", "host.example")
    certificates = Certificates(tmp_path)
    (tmp_path / "host" / KEY_FILE).unlink()
    for _ in range(2):
        certificates.refresh()
    assert [f"{KEY_FILE} cannot be read" in found.message for found in caplog.records] == [True]
    assert serial_of(handshake(certificates.context, authority.trust(), "host.example")) == serial


def test_a_certificate_that_has_ended_is_served_and_told(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """A visitor's browser says what is wrong with it; with none, nobody could tell."""
    authority.issue(tmp_path / "host", "host.example", days=-1)
    context = Certificates(tmp_path).context
    assert [found.message for found in caplog.records if found.levelno == logging.WARNING] == [
        f"the certificate in {tmp_path / 'host'} ended on {(datetime.now(UTC) - timedelta(days=1)).date()}"
    ]
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(context, authority.trust(), "host.example")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["http/1.1"], "http/1.1"),
        (["h2", "http/1.1"], "http/1.1"),
        (["h2"], None),
        (["http/1.0"], None),
        ([], None),
    ],
)
def test_a_protocol_is_chosen_only_where_it_is_the_one_that_is_spoken(
    offered: list[str], chosen: str | None, tmp_path: Path, authority: Authority
) -> None:
    authority.issue(tmp_path / "host", "host.example")
    client = authority.trust()
    client.set_alpn_protocols(offered)
    found = handshake(Certificates(tmp_path).context, client, "host.example")
    assert found.selected_alpn_protocol() == chosen


def test_a_name_that_is_none_is_a_strangers_and_anything_else_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, authority: Authority
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", hush_strange_names)
    authority.issue(tmp_path / "host", "host.example")
    context = Certificates(tmp_path).context
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.trust().wrap_bio(to_client, to_server, server_hostname="zz.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = to_server.read()
    assert b"zz.example" in hello
    to_server.write(hello.replace(b"zz.example", b"\xff\xfe.example"))
    with pytest.raises(ssl.SSLError):
        context.wrap_bio(to_server, to_client, server_side=True).do_handshake()
    assert capsys.readouterr().err == ""

    class Broken:
        def __del__(self) -> None:
            raise ZeroDivisionError

    Broken()
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda place: (place / KEY_FILE).unlink(), "cannot be read"),
        (lambda place: (place / KEY_FILE).write_text("no key"), "is not the key of"),
        (lambda place: (place / KEY_FILE).write_text(""), "is not the key of"),
        (
            lambda place: (place / KEY_FILE).write_bytes(lock((place / KEY_FILE).read_bytes())),
            "is not the key of",
        ),
        (lambda place: (place / CHAIN_FILE).write_text(""), "is no certificate for a host name"),
        (
            lambda place: (place / CHAIN_FILE).write_bytes((place / CHAIN_FILE).read_bytes()[:-80]),
            "is no certificate",
        ),
        (
            lambda place: (place / CHAIN_FILE).write_bytes((place / KEY_FILE).read_bytes()),
            "is no certificate",
        ),
        (
            lambda place: (place / CHAIN_FILE).write_text("no certificate"),
            "is no certificate for a host name",
        ),
        (lambda place: Authority().issue(place), "is no certificate for a host name"),
        (lambda place: (place / CHAIN_FILE).write_bytes(for_x400()), "is no certificate for a host name"),
    ],
)
def test_what_cannot_be_served_stops_the_start(
    broken: object, message: str, tmp_path: Path, authority: Authority
) -> None:
    authority.issue(tmp_path / "host", "host.example")
    assert callable(broken)
    broken(tmp_path / "host")
    with pytest.raises(CertificateError, match=message):
        Certificates(tmp_path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="nowhere: No such file"):
        Certificates(tmp_path / "nowhere")


def test_a_directory_that_went_away_is_told_once_and_its_certificates_stay(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    authority.issue(tmp_path / "there" / "host", "host.example")
    certificates = Certificates(tmp_path / "there")
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    for _ in range(3):
        certificates.refresh()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert certificates.choose("host.example") is not None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_also_after_a_renewal(
    version: ssl.TLSVersion, tmp_path: Path, authority: Authority
) -> None:
    clock = Clock()
    authority.issue(tmp_path / "host", "host.example")
    context = Certificates(tmp_path, clock=clock).context
    client = authority.trust()
    client.minimum_version = client.maximum_version = version
    first = handshake(context, client, "host.example")
    assert (first.version(), first.session_reused) == (version.name.replace("_", "."), False)
    authority.issue(tmp_path / "host", "host.example")
    clock.now += LOOK_EVERY * 2
    assert handshake(context, client, "host.example", first.session).session_reused


def test_nothing_older_than_1_2_is_spoken_and_no_weak_cipher(tmp_path: Path, authority: Authority) -> None:
    authority.issue(tmp_path / "host", "host.example")
    certificates = Certificates(tmp_path)
    old = authority.trust()
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(certificates.context, old, "host.example")
    weak = authority.trust()
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA256")
    with pytest.raises(ssl.SSLError):
        handshake(certificates.context, weak, "host.example")
    found = certificates.choose("host.example")
    assert found is not None
    for context in (certificates.context, found.context):
        assert all(
            cipher["name"].startswith(("TLS_", "ECDHE-")) and cipher["aead"]
            for cipher in context.get_ciphers()
        )
