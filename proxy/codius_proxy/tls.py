"""TLS at the front door: certificates from files, chosen by a visitor's name for us, renewed in place.

A directory holds one folder per certificate, with `fullchain.pem` and `privkey.pem`: what certbot keeps in
`live/`, and what any other ACME client can be told to write.
"""

from __future__ import annotations

import logging
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

from cryptography import x509

from codius_proxy.config import CertificateError

logger = logging.getLogger(__name__)

CHAIN_FILE: Final = "fullchain.pem"
KEY_FILE: Final = "privkey.pem"
LOOK_EVERY: Final = 1.0  # seconds; a handshake looks at most this often whether a file has changed
PROTOCOLS: Final = ("http/1.1",)  # ALPN, RFC 7301: what this host speaks
# For TLS 1.2; 1.3 has no bad ones. Forward secrecy and authenticated encryption, RFC 9325 section 4.2.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

_STRANGE: Final = (  # in a certificate; what `x509` says is none of ValueError's kind
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_Stamp: TypeAlias = tuple[int, int, int]  # what changes when a file or its mode does: inode, size, ctime
_Stamps: TypeAlias = tuple[_Stamp, _Stamp]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain with its key, ready to be served."""

    directory: Path
    names: frozenset[str]  # lower-case; `*.example.com` covers one label
    expires: datetime
    context: ssl.SSLContext


class Certificates:
    """The certificates of a directory, as they are now."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """CertificateError when the directory or one of its certificates is of no use.

        Made before the workers are forked: they share this context's ticket keys, so that each resumes
        the sessions that another one began.
        """
        self._directory = directory
        self._clock = clock
        self._looked = clock()
        self._unreadable = False  # the directory; told once
        self._stamps: dict[Path, _Stamps] = {}
        self._loaded: dict[Path, Certificate] = {}
        self._by_name: dict[str, Certificate] = {}
        self.context = _new_context()
        self.context.sni_callback = self._on_hello
        for error in self._look():
            raise error

    @property
    def names(self) -> frozenset[str]:
        """All names that are covered."""
        return frozenset(self._by_name)

    def choose(self, name: str | None) -> Certificate | None:
        """The one that covers `name`; any, so that the visitor sees whose it is, when none does."""
        if name is not None:
            hostname = name.lower().removesuffix(".")
            found = self._by_name.get(hostname) or self._by_name.get("*." + hostname.partition(".")[2])
            if found is not None:
                return found
        return min(self._loaded.values(), key=lambda found: found.directory, default=None)

    def refresh(self) -> None:
        """Take up what has changed. What cannot be served is told once, and the last good one stays."""
        for error in self._look():
            logger.error("%s; the one before it stays in use", error)

    def _on_hello(
        self, handshake: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
    ) -> int | None:
        now = self._clock()
        if now - self._looked > LOOK_EVERY:
            self._looked = now
            self.refresh()
        found = self.choose(name)
        if found is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR  # no certificate yet
        handshake.context = found.context
        return None

    def _look(self) -> list[CertificateError]:
        """Load what is new or changed, forget what is gone; why something could not be."""
        errors: list[CertificateError] = []
        try:
            places = sorted(place for place in self._directory.iterdir() if (place / CHAIN_FILE).exists())
        except OSError as error:
            known, self._unreadable = self._unreadable, True
            return (
                []
                if known
                else [CertificateError(f"the certificates in {self._directory}: {error.strerror}")]
            )
        self._unreadable = False
        stamps = dict(self._stamps)
        for place in places:
            stamp = (_stamp(place / CHAIN_FILE), _stamp(place / KEY_FILE))
            if stamps.get(place) == stamp:
                continue  # also when it could not be loaded: it is told once
            stamps[place] = stamp
            try:
                self._loaded[place] = load(place)
            except CertificateError as error:
                errors.append(error)
            else:
                names = " ".join(sorted(self._loaded[place].names))
                logger.info("certificate %s: for %s", place.name, names)
        for place in set(stamps) - set(places):
            del stamps[place]
            self._loaded.pop(place, None)
            logger.info("certificate %s: gone", place.name)
        self._stamps = stamps
        self._by_name = {
            name: found
            for found in sorted(self._loaded.values(), key=lambda found: found.expires)  # the last one wins
            for name in found.names
        }
        return errors


def load(directory: Path) -> Certificate:
    """CertificateError when a file cannot be read, they are no pair, or the certificate is for no name."""
    chain, key = directory / CHAIN_FILE, directory / KEY_FILE
    try:
        leaf = x509.load_pem_x509_certificates(chain.read_bytes())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))
    except OSError as error:
        raise CertificateError(f"{chain} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, *_STRANGE) as error:
        raise CertificateError(f"{chain} is no certificate for a host name: {error}") from error
    if not found:
        raise CertificateError(f"{chain} is for no host name")
    context = _new_context()
    try:
        context.load_cert_chain(chain, key, password="")  # without it OpenSSL would ask on the terminal
    except ssl.SSLError as error:
        raise CertificateError(f"{key} is not the key of {chain}: {error.reason or error}") from error
    except OSError as error:
        raise CertificateError(f"{key} cannot be read: {error.strerror}") from error
    expires = leaf.not_valid_after_utc
    if expires < datetime.now(UTC):
        logger.warning("the certificate in %s ended on %s", directory, expires.date())
    return Certificate(directory, found, expires, context)


def hush_strange_names(failure: sys.UnraisableHookArgs) -> None:
    """For `sys.unraisablehook`: says nothing of names for us that are not ASCII.

    Python decodes a visitor's SNI before it asks `_on_hello`, and where it cannot it sends an alert, which is
    right (RFC 6066 section 3), and shows a traceback, which is the visitor's to order as often as he likes.
    """
    if not (isinstance(failure.exc_value, UnicodeDecodeError) and isinstance(failure.object, bytes)):
        sys.__unraisablehook__(failure)


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(list(PROTOCOLS))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_ctime_ns)
