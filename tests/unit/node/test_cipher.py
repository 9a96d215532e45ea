from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codius_node.cipher import KEY_BYTES, NONCE_BYTES, Cipher, create_key, find_key
from codius_node.errors import StoreError
from codius_node.model import ManifestHash, PrivateVariable

HASH = ManifestHash("a" * 52)
OTHER = ManifestHash("b" * 52)
KEY = bytes(range(32))
SECRET = "correct-horse-battery"
PRIVATE = {"PASSWORD": PrivateVariable(nonce="n-1234567890", value=SECRET)}


def assert_says_nothing(error: BaseException | None) -> None:
    """Neither the error nor what led to it carries the content or the key."""
    while error is not None:
        for shown in (str(error), repr(error), repr(vars(error)), repr(error.args)):
            assert SECRET not in shown
            assert "n-1234567890" not in shown
            assert repr(KEY) not in shown
        error = error.__cause__


def test_what_was_locked_opens_again() -> None:
    assert Cipher(KEY).decrypt(HASH, Cipher(KEY).encrypt(HASH, PRIVATE)) == PRIVATE


@given(
    st.dictionaries(st.text(st.characters()), st.builds(PrivateVariable, st.text(), st.text(st.characters())))
)
def test_any_values_open_as_they_were_locked(private: dict[str, PrivateVariable]) -> None:
    cipher = Cipher(KEY)
    assert cipher.decrypt(HASH, cipher.encrypt(HASH, private)) == private


def test_a_lone_surrogate_is_locked_like_any_other_character() -> None:
    private = {"ODD": PrivateVariable(nonce="\ud800", value="\udfff and more")}
    assert Cipher(KEY).decrypt(HASH, Cipher(KEY).encrypt(HASH, private)) == private


def test_the_locked_value_shows_nothing_and_never_repeats() -> None:
    cipher = Cipher(KEY)
    first, second = cipher.encrypt(HASH, PRIVATE), cipher.encrypt(HASH, PRIVATE)
    assert SECRET.encode() not in first
    assert b"PASSWORD" not in first
    assert first[1 : 1 + NONCE_BYTES] != second[1 : 1 + NONCE_BYTES]
    assert first != second


def test_another_key_opens_nothing_and_says_nothing() -> None:
    locked = Cipher(KEY).encrypt(HASH, PRIVATE)
    with pytest.raises(StoreError, match="cannot be decrypted") as caught:
        Cipher(bytes(32)).decrypt(HASH, locked)
    assert caught.value.hint
    assert_says_nothing(caught.value)


def test_a_value_of_one_pod_does_not_open_for_another() -> None:
    locked = Cipher(KEY).encrypt(HASH, PRIVATE)
    with pytest.raises(StoreError, match=OTHER):
        Cipher(KEY).decrypt(OTHER, locked)


def test_every_changed_byte_is_noticed() -> None:
    cipher = Cipher(KEY)
    locked = cipher.encrypt(HASH, PRIVATE)
    for index in range(len(locked)):
        changed = bytearray(locked)
        changed[index] ^= 1
        with pytest.raises(StoreError) as caught:
            cipher.decrypt(HASH, bytes(changed))
        assert_says_nothing(caught.value)


@given(st.binary(max_size=80))
def test_any_bytes_in_the_row_are_a_store_error(locked: bytes) -> None:
    with pytest.raises(StoreError):
        Cipher(KEY).decrypt(HASH, locked)


@pytest.mark.parametrize("content", ["not json " + SECRET, json.dumps([SECRET]), json.dumps({"A": SECRET})])
def test_an_authentic_value_of_another_shape_is_a_store_error_without_content(content: str) -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = bytes(NONCE_BYTES)
    locked = b"\x01" + nonce + AESGCM(KEY).encrypt(nonce, content.encode(), b"\x01" + HASH.encode())
    with pytest.raises(StoreError) as caught:
        Cipher(KEY).decrypt(HASH, locked)
    assert_says_nothing(caught.value)


def test_neither_cipher_nor_private_variables_show_themselves() -> None:
    shown = repr(Cipher(KEY)) + repr(PRIVATE)
    assert repr(KEY) not in shown
    assert KEY.hex() not in shown
    assert SECRET not in shown


def test_a_cipher_wants_a_whole_key() -> None:
    with pytest.raises(ValueError, match="32"):
        Cipher(b"short")


def test_the_library_is_not_imported_before_the_first_value() -> None:
    code = (
        "import sys; from codius_node.cipher import Cipher; c = Cipher(bytes(32));"
        "assert 'cryptography' not in sys.modules; c.encrypt('a' * 52, {});"
        "assert 'cryptography' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_new_key_is_a_secret_of_32_bytes_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert find_key(path) is None
    key = create_key(path)
    assert len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert find_key(path) == key
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_key_is_never_replaced_by_a_second_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = create_key(path)
    assert create_key(path) == first
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_loose_umask_does_not_loosen_the_key(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_key(tmp_path / "key")
    finally:
        os.umask(old)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o777])
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(StoreError, match=f"{mode:04o}") as caught:
        find_key(path)
    assert caught.value.hint == f"Run: chmod 600 {path}"


@pytest.mark.parametrize("size", [0, 31, 33, 4096])
def test_a_key_of_the_wrong_length_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(StoreError, match=f"has {size} bytes") as caught:
        find_key(path)
    assert caught.value.hint


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_in_the_place_of_the_key_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "key")
    with pytest.raises(StoreError, match="is not a file"):
        find_key(tmp_path / "key")


def test_a_key_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be created") as caught:
        create_key(tmp_path / "missing" / "key")
    assert caught.value.hint
