"""The self-test's sample: its image, its manifest, and what its pod says to visitors. No I/O."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from typing import Final

from codius_node.model import Json

PORT: Final = 8080
PROGRAM: Final = "sample"
"""The one file of the image."""
REPOSITORY: Final = "localhost/codius-selftest"
"""Where no registry is; the tag is the program's own hash."""
WEBSOCKET_PATH: Final = "/ws"
"""The program looks at the first letter of a path only: w is the WebSocket."""
WEBSOCKET_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 section 1.3."""
MAX_TEXT: Final = 125
"""Bytes of a WebSocket message whose length fits into its second byte (RFC 6455 section 5.2)."""


def build_image(program: bytes) -> tuple[str, bytes]:
    """The image's name and its one layer as a tar archive; the same bytes for the same program."""
    entry = tarfile.TarInfo(PROGRAM)
    entry.size, entry.mode = len(program), 0o755
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(program))
    return f"{REPOSITORY}:{hashlib.sha256(program).hexdigest()[:16]}", archive.getvalue()


def build_upload(image: str, *, nonce: str, key: str, built_in: bool) -> dict[str, Json]:
    """What a client would upload. The nonce makes it a pod that never was before.

    The `built_in` image is told what to answer: the nonce, and the handshake that fits the key. Another one
    has to know by itself how to answer on the sample's port.
    """
    container: dict[str, Json] = {"id": "sample", "image": image}
    if built_in:
        container["command"] = [f"/{PROGRAM}", build_answer(nonce), build_switch(key)]
    return {
        "manifest": {
            "name": "selftest",
            "version": nonce,
            "machine": "small",
            "port": str(PORT),
            "containers": [container],
        }
    }


def build_answer(text: str) -> str:
    """A whole HTTP answer."""
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
        f"Connection: close\r\n\r\n{text}"
    )


def build_switch(key: str) -> str:
    """A server's half of the WebSocket handshake with this client's key (RFC 6455 section 4.2.2)."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {build_accept(key)}\r\n\r\n"
    )


def build_accept(key: str) -> str:
    """What proves that a server has read this key."""
    digest = hashlib.sha1(f"{key}{WEBSOCKET_GUID}".encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


def build_frame(text: str) -> bytes:
    """A client's text message in one frame, with a mask of zeros (RFC 6455 section 5.3): it hides nothing."""
    data = text.encode()
    if len(data) > MAX_TEXT:
        raise ValueError(f"a message of {len(data)} bytes needs a longer header")
    return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data


def build_echo(text: str) -> bytes:
    """A server's frame with the same text."""
    data = text.encode()
    return bytes((0x81, len(data))) + data
