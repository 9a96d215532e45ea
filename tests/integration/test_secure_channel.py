"""TLS channels and OpenSSL's client side: records in any pieces, good-byes, alerts, and who misbehaves."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from tests.harness import ears
from tests.harness.certificates import Authority, make_contexts
from tests.harness.ears import Ear, fill, on_front_loop, rest, take, tcp_pair, until
from tests.harness.origin import DEADLINE

NAME = "host.example"
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = make_contexts(tmp_path_factory.mktemp("certificate"), NAME)
    server.options |= ssl.OP_NO_RENEGOTIATION
    return server, client


class Visitor:
    """A TLS client whose bytes go where, when and in which pieces the test wants."""

    def __init__(
        self, contexts: tuple[ssl.SSLContext, ssl.SSLContext], version: ssl.TLSVersion = VERSIONS[1]
    ) -> None:
        server, client = contexts
        self.ours, self.end = tcp_pair()
        self.session = ears.secure_channel.Session(server)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client.minimum_version = client.maximum_version = version
        self.tls = client.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)

    async def send(self, data: bytes, *, piece: int | None = None) -> None:
        """As they are; with `piece`, the loop comes to rest after so many bytes."""
        for start in range(0, len(data), piece or len(data) or 1):
            await asyncio.get_running_loop().sock_sendall(
                self.end, data[start : start + (piece or len(data))]
            )
            if piece:
                await rest()

    def records(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._outgoing.read()

    def good_bye(self) -> bytes:
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        return self._outgoing.read()

    async def shake_hands(self, *, piece: int | None = None, early: bytes = b"") -> None:
        """`early` goes together with the last flight."""
        shaking = asyncio.create_task(self.session.shake_hands(self.ours))
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send(self._outgoing.read(), piece=piece)
                self._incoming.write(await asyncio.get_running_loop().sock_recv(self.end, 1 << 16))
            except ssl.SSLError:
                await self.send(self._outgoing.read())
                break
            else:
                flight = self._outgoing.read()
                await self.send(flight + (self.records(early) if early else b""), piece=piece)
                break
        await shaking

    def open(self, ear: Ear | None = None) -> tuple[Ear, ears.secure_channel.SecureChannel]:
        ear = ear or Ear()
        return ear, ears.secure_channel.SecureChannel(self.ours, ear, "peer", self.session)

    def read(self) -> bytes:
        """Content that has come; `<good-bye>` where there was one."""
        with suppress(AssertionError):  # the end of the connection
            self._incoming.write(take(self.end))
        found = b""
        try:
            while data := self.tls.read(1 << 16):
                found += data
        except ssl.SSLWantReadError:
            return found
        except ssl.SSLZeroReturnError:  # an answer to ours
            pass
        return found + b"<good-bye>"

    async def until_end(self) -> bytes:
        """The same for everything up to the end of the connection."""
        async with asyncio.timeout(DEADLINE):
            while data := await asyncio.get_running_loop().sock_recv(self.end, 1 << 20):
                self._incoming.write(data)
        return self.read()

    def close(self) -> None:
        self.ours.close()
        self.end.close()


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def visitor(
    request: pytest.FixtureRequest, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> Iterator[Visitor]:
    found = Visitor(contexts, request.param)
    yield found
    found.close()


# Records.


@pytest.mark.parametrize("piece", [None, 1, 7, 1000])
@on_front_loop
async def test_a_handshake_comes_in_any_pieces(visitor: Visitor, piece: int | None) -> None:
    await visitor.shake_hands(piece=piece)
    ear, found = visitor.open()
    await visitor.send(visitor.records(b"hello"), piece=piece)
    await until(lambda: ear.data)
    assert ear.data == b"hello"
    found.write(b"good day")
    await rest()
    assert visitor.read() == b"good day"
    found.abort()
    await rest()


@on_front_loop
async def test_what_comes_with_the_end_of_the_handshake_is_not_lost(visitor: Visitor) -> None:
    """Also when nothing more ever comes."""
    await visitor.shake_hands(early=b"early")
    ear, found = visitor.open()
    assert ear.data == b""  # later, as everything else
    await until(lambda: ear.data)
    assert ear.data == b"early"
    found.abort()
    await rest()


@on_front_loop
async def test_what_comes_with_the_end_of_the_handshake_and_after_is_in_order(visitor: Visitor) -> None:
    await visitor.shake_hands(early=b"early,")
    await visitor.send(visitor.records(b"late"))
    ear, found = visitor.open()
    await until(lambda: len(ear.data) >= 10)
    assert ear.data == b"early,late"
    found.abort()
    await rest()


@on_front_loop
async def test_a_pause_from_the_beginning_holds_what_came_with_the_handshake(visitor: Visitor) -> None:
    await visitor.shake_hands(early=b"early")
    ear, found = visitor.open(Ear({"connection_made": lambda found: found.pause_reading()}))
    await rest()
    assert ear.data == b""
    found.resume_reading()
    await until(lambda: ear.data)
    assert ear.data == b"early"
    found.abort()
    await rest()


@pytest.mark.parametrize("how", ["close", "abort"])
@on_front_loop
async def test_whoever_is_sent_away_at_once_is_not_heard(visitor: Visitor, how: str) -> None:
    await visitor.shake_hands(early=b"early")

    def refuse(found: ears.channel.Channel) -> None:
        found.write(b"no")
        getattr(found, how)()

    ear, _ = visitor.open(Ear({"connection_made": refuse}))
    await rest()
    with suppress(ConnectionError):
        await visitor.send(visitor.records(b"and again"))
        assert await visitor.until_end() == (b"no<good-bye>" if how == "close" else b"no")
    visitor.end.close()
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "connection_lost"]
    assert how == "abort" or ear.error is None


@pytest.mark.parametrize("piece", [1, 3, 100, 16_411, 40_000, None])
@on_front_loop
async def test_records_are_split_and_joined_in_all_ways(visitor: Visitor, piece: int | None) -> None:
    parts = (
        [b"a", b"b" * 100, b"c" * 16_384, b"d" * 50_000, b"e"]
        if piece is None or piece > 3
        else [b"a", b"bcd"]
    )
    await visitor.shake_hands()
    ear, found = visitor.open()
    await visitor.send(b"".join(visitor.records(part) for part in parts), piece=piece)
    await until(lambda: len(ear.data) == sum(map(len, parts)))
    assert ear.data == b"".join(parts)
    found.abort()
    await rest()


@on_front_loop
async def test_a_large_answer_goes_out_under_back_pressure(visitor: Visitor) -> None:
    await visitor.shake_hands()
    ear, found = visitor.open()
    sent = bytes(range(256)) * 40_000
    found.write(sent)
    assert ear.heard[-1] == "pause_writing"
    found.write(b"more")
    assert visitor.session.outgoing.pending == 0  # nothing hides where nobody counts it
    received = b""
    while len(received) < len(sent) + 4:
        received += visitor.read()
        await asyncio.sleep(0)
    assert received == sent + b"more"
    assert ear.heard[-2:] == ["pause_writing", "resume_writing"]
    found.abort()
    await rest()


@on_front_loop
async def test_openssl_has_no_more_than_a_piece_at_a_time(visitor: Visitor) -> None:
    """Its buffers never shrink: ten thousand visitors would keep what each of them had at most."""
    await visitor.shake_hands()
    ear, found = visitor.open()
    encrypt, feed = found._encrypt, found._feed
    sizes: dict[str, list[int]] = {"encrypted": [], "fed": []}

    def encrypted(data: Any) -> int:
        sizes["encrypted"].append(len(data))
        return encrypt(data)

    def fed(data: Any) -> int:
        sizes["fed"].append(len(data))
        return feed(data)

    found._encrypt, found._feed = encrypted, fed
    sent = bytes(range(256)) * 4000
    found.write(sent)
    received = b""
    while len(received) < len(sent):
        received += visitor.read()
        await asyncio.sleep(0)
    await visitor.send(visitor.records(sent))
    await until(lambda: len(ear.data) == len(sent))
    assert received == ear.data == sent
    assert max(sizes["encrypted"]) <= ears.secure_channel.PIECE < sum(sizes["encrypted"])
    assert max(sizes["fed"]) <= ears.secure_channel.PIECE < sum(sizes["fed"])
    found.abort()
    await rest()


@on_front_loop
async def test_what_is_not_read_waits_in_the_kernel_and_not_here(visitor: Visitor) -> None:
    await visitor.shake_hands()
    ear, found = visitor.open()
    found.pause_reading()
    records = visitor.records(b"x" * 1_000_000)
    with suppress(BlockingIOError):  # the kernel takes some megabytes, and then no more
        while True:
            visitor.end.send(records)
            await rest()
    assert ear.data == b""
    assert visitor.session.incoming.pending == 0
    found.abort()
    await rest()


# Ends.


@on_front_loop
async def test_a_channel_has_no_half_end(visitor: Visitor) -> None:
    await visitor.shake_hands()
    _, found = visitor.open()
    assert not found.half_closable
    with pytest.raises(NotImplementedError):
        found.write_eof()
    found.abort()
    await rest()


@on_front_loop
async def test_a_good_bye_of_theirs_is_answered_and_is_the_end(visitor: Visitor) -> None:
    """Even when they never hang up: nobody waits for that."""
    await visitor.shake_hands()
    ear, _ = visitor.open()
    await visitor.send(visitor.records(b"last") + visitor.good_bye())
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert ear.data == b"last"
    assert ear.error is None
    assert await visitor.until_end() == b"<good-bye>"


@on_front_loop
async def test_a_good_bye_of_ours_comes_last_and_theirs_ends_it(visitor: Visitor) -> None:
    await visitor.shake_hands()
    ear, found = visitor.open()
    found.write(b"last")
    found.close()
    found.write(b"too late")
    found.close()
    await visitor.send(visitor.records(b"not heard"))
    await rest()
    assert not ear.lost
    assert await visitor.until_end() == b"last<good-bye>"
    await visitor.send(visitor.good_bye())
    await rest()
    visitor.end.close()
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "connection_lost"]
    assert ear.error is None


@on_front_loop
async def test_whoever_never_answers_our_good_bye_is_cut_off_by_whoever_counts_the_time(
    visitor: Visitor,
) -> None:
    await visitor.shake_hands()
    ear, found = visitor.open()
    found.close()
    await rest()
    assert found.closing
    assert not ear.lost
    found.abort()
    await until(lambda: ear.lost)


@on_front_loop
async def test_who_is_still_speaking_gets_our_last_words(visitor: Visitor) -> None:
    """What it says is taken and thrown away: otherwise it could not get so far as to listen."""
    await visitor.shake_hands()
    ear, found = visitor.open()
    found.write(b"last")
    found.close()
    async with asyncio.timeout(DEADLINE):
        await visitor.send(visitor.records(b"x" * 20_000_000))
    assert await visitor.until_end() == b"last<good-bye>"
    visitor.end.close()
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "connection_lost"]


@on_front_loop
async def test_a_pause_after_our_good_bye_does_not_hide_the_end(visitor: Visitor) -> None:
    await visitor.shake_hands()
    ear, found = visitor.open()
    found.close()
    found.pause_reading()
    await visitor.send(visitor.records(b"x"))
    await rest()
    assert not ear.lost
    visitor.end.close()
    await until(lambda: ear.lost)


@on_front_loop
async def test_our_good_bye_comes_after_what_waits(visitor: Visitor) -> None:
    await visitor.shake_hands()
    ear, found = visitor.open()
    length = fill(found)
    found.close()
    assert await visitor.until_end() == b"f" * length + b"<good-bye>"
    visitor.end.close()
    await until(lambda: ear.lost)
    assert ear.error is None


@pytest.mark.parametrize("kept", [0, 1, 20])
@on_front_loop
async def test_an_end_without_a_good_bye_is_an_end(visitor: Visitor, kept: int) -> None:
    """HTTP knows by itself what is missing. `kept`: bytes of a record that was cut off."""
    await visitor.shake_hands()
    ear, _ = visitor.open()
    await visitor.send(visitor.records(b"whole") + visitor.records(b"cut off")[:kept])
    visitor.end.shutdown(socket.SHUT_WR)
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert ear.data == b"whole"
    assert await visitor.until_end() == b"<good-bye>"


@on_front_loop
async def test_a_mended_record_is_answered_by_an_alert_and_is_the_end(visitor: Visitor) -> None:
    await visitor.shake_hands()
    ear, _ = visitor.open()
    record = bytearray(visitor.records(b"forged"))
    record[-1] ^= 1
    await visitor.send(bytes(record))
    await until(lambda: ear.lost)
    assert isinstance(ear.error, ssl.SSLError)
    assert ear.heard == ["connection_made", "connection_lost"]
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await visitor.until_end()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 40, b"\x17\x03\x03\xff\xff" + b"x" * 40]
)
@on_front_loop
async def test_garbage_after_the_handshake_is_the_end(visitor: Visitor, garbage: bytes) -> None:
    await visitor.shake_hands()
    ear, _ = visitor.open()
    await visitor.send(visitor.records(b"good") + garbage)
    await until(lambda: ear.lost)
    assert ear.data == b"good"
    assert isinstance(ear.error, ssl.SSLError)


@on_front_loop
async def test_garbage_instead_of_a_handshake_is_answered_by_an_alert(visitor: Visitor) -> None:
    await visitor.send(b"\x16\x03\x01\x00\x04\xff\x00\x00\x00")  # no handshake message has that type
    with pytest.raises(ssl.SSLError):
        await visitor.session.shake_hands(visitor.ours)
    assert take(visitor.end)[:1] == b"\x15"  # RFC 8446 section 5.1: an alert


@on_front_loop
async def test_an_end_within_the_handshake_is_an_error(visitor: Visitor) -> None:
    shaking = asyncio.create_task(visitor.session.shake_hands(visitor.ours))
    await visitor.send(b"\x16\x03\x01")
    visitor.end.close()
    with pytest.raises(ConnectionResetError):
        await shaking


@on_front_loop
async def test_who_does_not_trust_us_says_so_in_the_handshake(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    stranger = Visitor((contexts[0], Authority().trust()), ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        await stranger.shake_hands()
    stranger.close()


# What else TLS may say: `K` makes s_client ask for new keys, `R` for a new handshake.


class Program:
    """`openssl s_client` behind a socket of ours, so that what it says can be held back."""

    def __init__(self, port: int, *options: str) -> None:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", NAME, *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def programs() -> Iterator[Callable[..., tuple[Program, socket.socket]]]:
    opened: list[tuple[Program, socket.socket]] = []

    def start(*options: str) -> tuple[Program, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            program = Program(listening.getsockname()[1], *options)
            connection, _ = listening.accept()
        connection.setblocking(False)
        opened.append((program, connection))
        return program, connection

    yield start
    for program, connection in opened:
        program.close()
        connection.close()


@pytest.mark.parametrize("command", ["K", "k"])
@on_front_loop
async def test_new_keys_change_nothing_for_the_endpoint(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    programs: Callable[..., tuple[Program, socket.socket]],
    command: str,
) -> None:
    program, connection = programs("-tls1_3")
    session = ears.secure_channel.Session(contexts[0])
    await session.shake_hands(connection)
    ear = Ear()
    found = ears.secure_channel.SecureChannel(connection, ear, "peer", session)
    reads: list[int] = []

    def receive(size: int, flags: int = 0) -> bytes:
        reads.append(size)
        return connection.recv(size, flags)

    found._receive = receive
    for number in range(3):
        program.say(command)  # alone: of what comes to it in one piece only the first letter is a command
        await until(partial(lambda before: len(reads) > before, len(reads)))
        program.say(f"line {number}")
        await until(partial(lambda line: line in ear.data, b"line %d\n" % number))
    found.write(b"answer")
    assert ear.data == b"line 0\nline 1\nline 2\n"
    found.close()
    await until(lambda: ear.lost)
    assert program.process.stdout is not None
    assert b"answer" in program.process.stdout.read()


@on_front_loop
async def test_another_handshake_is_declined(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    programs: Callable[..., tuple[Program, socket.socket]],
) -> None:
    program, connection = programs("-tls1_2")
    session = ears.secure_channel.Session(contexts[0])
    await session.shake_hands(connection)
    ear = Ear()
    ears.secure_channel.SecureChannel(connection, ear, "peer", session)
    program.say("hello")
    await until(lambda: ear.data)
    program.say("R")
    await until(lambda: ear.lost)
    assert ear.data == b"hello\n"


@on_front_loop
async def test_whoever_makes_tls_speak_without_listening_is_cut_off(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    programs: Callable[..., tuple[Program, socket.socket]],
) -> None:
    """Every request for new keys costs an answer, and nobody else bounds how many of them wait."""
    program, connection = programs("-tls1_3")
    session = ears.secure_channel.Session(contexts[0])
    await session.shake_hands(connection)
    ear = Ear()
    found = ears.secure_channel.SecureChannel(connection, ear, "peer", session)
    program.process.send_signal(19)  # SIGSTOP: it reads no more
    fill(found)
    session.outgoing.write(b"o" * (ears.secure_channel.MAX_OWED + 1))
    found._reply()
    await until(lambda: ear.lost)
    assert isinstance(ear.error, ConnectionAbortedError)


@on_front_loop
async def test_tls_speaking_to_who_listens_is_not_counted(visitor: Visitor) -> None:
    await visitor.shake_hands()
    ear, found = visitor.open()
    for _ in range(20):
        visitor.session.outgoing.write(b"o" * 1024)
        found._reply()
        assert take(visitor.end)
    assert not found.closing
    found.abort()
    await until(lambda: ear.lost)
