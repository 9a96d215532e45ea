"""Encryption at rest: the host's key, and the private variables it locks."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from codius_node.errors import StoreError
from codius_node.model import ManifestHash, PrivateVariable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
"""AES-256."""
NONCE_BYTES: Final = 12
"""GCM's own size (NIST SP 800-38D); random, good for 2^32 values under one key, one value per upload."""
TAG_BYTES: Final = 16
"""GCM's full tag."""
LAYOUT: Final = b"\x01"
"""First byte of a locked value: version, nonce, ciphertext, tag. Another algorithm gets another byte."""


class Cipher:
    """The host's key: locks a pod's private variables for the database, and unlocks them again.

    A locked value is bound to its manifest's hash: moved to another pod's row it does not open.
    """

    __slots__ = ("_aead", "_key")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._key = key
        self._aead: AESGCM | None = None

    def encrypt(self, hash: ManifestHash, private: Mapping[str, PrivateVariable]) -> bytes:
        # ASCII escapes: a lone surrogate is legal JSON and has no UTF-8.
        document = {name: {"nonce": item.nonce, "value": item.value} for name, item in private.items()}
        nonce = secrets.token_bytes(NONCE_BYTES)
        locked = self._get_aead().encrypt(nonce, json.dumps(document).encode("ascii"), _bind(hash))
        return LAYOUT + nonce + locked

    def decrypt(self, hash: ManifestHash, locked: bytes) -> dict[str, PrivateVariable]:
        """StoreError when the value was changed, belongs to another pod or was locked with another key."""
        from cryptography.exceptions import InvalidTag

        if locked[:1] != LAYOUT or len(locked) < len(LAYOUT) + NONCE_BYTES + TAG_BYTES:
            raise _refuse(hash)
        nonce, body = locked[1 : 1 + NONCE_BYTES], locked[1 + NONCE_BYTES :]
        try:
            document = json.loads(self._get_aead().decrypt(nonce, body, _bind(hash)))
            return {name: PrivateVariable(item["nonce"], item["value"]) for name, item in document.items()}
        except (InvalidTag, ValueError, TypeError, KeyError, AttributeError):
            # Without the cause: a JSON error carries the whole text it could not read.
            raise _refuse(hash) from None

    def _get_aead(self) -> AESGCM:
        if self._aead is None:
            # Imported with the first private value: a host without any spares 9 MB and 30 ms.
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._aead = AESGCM(self._key)
        return self._aead


def find_key(path: Path) -> bytes | None:
    """The key in this file, None when there is no file; StoreError when it is not a secret of 32 bytes."""
    try:
        # Not blocking: a pipe in the key's place would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"the key file {path} cannot be read: {error.strerror}", hint=f"Check: ls -l {path}"
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"the key file {path} is not a file", hint="Move away what is in its place.")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise StoreError(
                f"the key file {path} is open to others (mode {mode:04o})", hint=f"Run: chmod 600 {path}"
            )
        key = os.read(descriptor, KEY_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(key) != KEY_BYTES:
        raise StoreError(
            f"the key file {path} has {status.st_size} bytes and a key has {KEY_BYTES}",
            hint="Restore it from a backup: without it the private variables of running pods are lost.",
        )
    return key


def create_key(path: Path) -> bytes:
    """A new key, on the disk for good before this returns; the old one when somebody was faster."""
    key = secrets.token_bytes(KEY_BYTES)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(key)
                file.flush()
                os.fsync(descriptor)
            # A link appears whole or not at all, and never replaces a key that is there already.
            os.link(draft, path)
        finally:
            draft.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        found = find_key(path)
        if found is None:
            raise StoreError(
                f"the key file {path} comes and goes", hint="Start one node at a time."
            ) from None
        return found
    except OSError as error:
        raise StoreError(
            f"the key file {path} cannot be created: {error.strerror}",
            hint=f"Check the free space and who may write to {path.parent}.",
        ) from error
    return key


def _bind(hash: ManifestHash) -> bytes:
    return LAYOUT + hash.encode("ascii")


def _refuse(hash: ManifestHash) -> StoreError:
    return StoreError(
        f"the private variables of pod {hash} cannot be decrypted",
        hint="The key file is not theirs, or the row was changed: restore both from the same backup.",
    )


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
