"""Channels over real sockets: what endpoints hear, in which order, and that nobody is told the same twice."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from codius_proxy.event_loop import FrontLoop
from tests.harness import ears
from tests.harness.ears import Ear, fill, on_front_loop, rest, take, take_all, tcp_pair, unix_pair, until
from tests.harness.origin import DEADLINE

Channel = ears.channel.Channel
HIGH_WATER, LOW_WATER = ears.channel.HIGH_WATER, ears.channel.LOW_WATER


@pytest.fixture(params=[tcp_pair, unix_pair])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = request.param()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = tcp_pair()
    with ours, theirs:
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


def listen(ends: Ends, ear: Ear | None = None) -> tuple[Ear, ears.channel.Channel, socket.socket]:
    ear = ear or Ear()
    return ear, Channel(ends[0], ear, "peer"), ends[1]


def reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


# Bytes.


@on_front_loop
async def test_bytes_pass_both_ways(ends: Ends) -> None:
    ear, found, theirs = listen(ends)
    assert ear.heard == ["connection_made"]
    theirs.send(b"hello")
    await until(lambda: ear.data == b"hello")
    found.write(b"")
    found.write(b"good ")
    found.write(b"day")
    assert take(theirs) == b"good day"  # at once
    await rest()
    found.abort()
    await until(lambda: ear.lost)


@on_front_loop
async def test_large_amounts_arrive_complete_and_in_order(ends: Ends) -> None:
    """In more pieces than the kernel is given at once, of all sizes: none, small and joined, and large."""
    ear, found, theirs = listen(ends)
    sent = b"f" * fill(found)
    for number in range(400):
        piece = b"%d," % number * (number % 7 * number)
        sent += piece
        found.write(piece)
    assert len(found._backlog) > ears.channel.MAX_BUFFERS
    found.close()
    assert await take_all(theirs) == sent
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "pause_writing", "resume_writing", "connection_lost"]
    assert ear.error is None


@on_front_loop
async def test_large_amounts_are_read_completely(ends: Ends) -> None:
    ear, _, theirs = listen(ends)
    sent = bytes(range(256)) * 8192
    await asyncio.get_running_loop().sock_sendall(theirs, sent)
    theirs.shutdown(socket.SHUT_WR)
    await until(lambda: ear.lost)
    assert ear.data == sent


@on_front_loop
async def test_many_small_pieces_that_wait_cost_little_more_than_their_bytes(ends: Ends) -> None:
    _, found, _ = listen(ends)
    before = fill(found)
    assert before
    pieces = len(found._backlog)
    for _ in range(2 * ears.channel.SMALL):
        found.write(b"x")
    assert len(found._backlog) <= pieces + 3
    found.abort()
    await rest()


# Pausing.


@on_front_loop
async def test_the_endpoint_is_asked_to_pause_above_the_high_mark_and_to_go_on_at_the_low_one(
    ends: Ends,
) -> None:
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOW_WATER // 2)  # the kernel takes little at once
    ear, found, theirs = listen(ends)
    fill(found)
    found.write(b"x" * (HIGH_WATER - found.waiting))
    assert found.waiting == HIGH_WATER
    assert "pause_writing" not in ear.heard
    found.write(b"x")
    found.write(b"x")
    assert ear.heard.count("pause_writing") == 1
    marks: list[int] = []
    ear.then["resume_writing"] = lambda found: marks.append(found.waiting)
    while not marks:
        take(theirs)
        await rest()
    assert 0 <= marks[0] <= LOW_WATER
    await until(lambda: not found.waiting or not take(theirs))
    assert ear.heard.count("resume_writing") == 1
    found.abort()
    await until(lambda: ear.lost)


@on_front_loop
async def test_an_endpoint_may_write_when_it_is_to_go_on(ends: Ends) -> None:
    rounds = iter(range(5))

    def more(found: ears.channel.Channel) -> None:
        for number in rounds:
            found.write(b"%d" % number * 100_000)
            if found.waiting > HIGH_WATER:
                return
        found.close()

    ear, found, theirs = listen(ends, Ear({"resume_writing": more}))
    length = fill(found)
    found.write(b"x" * HIGH_WATER)
    received = await take_all(theirs)
    assert received[length + HIGH_WATER :] == b"".join(b"%d" % number * 100_000 for number in range(5))
    await until(lambda: ear.lost)


@on_front_loop
async def test_a_closing_channel_that_got_rid_of_everything_is_not_blocked_any_more(ends: Ends) -> None:
    """Else its endpoint would take it for one whose peer does not read."""
    ear, found, theirs = listen(ends)
    found.write(b"x" * 8_000_000)
    found.close()
    assert len(await take_all(theirs)) == 8_000_000
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "pause_writing", "resume_writing", "connection_lost"]


@on_front_loop
async def test_a_paused_endpoint_hears_nothing_and_the_loop_rests(ends: Ends) -> None:
    ear, found, theirs = listen(ends)
    found.pause_reading()
    theirs.send(b"x")
    await rest()
    assert ear.data == b""
    found.resume_reading()
    await until(lambda: ear.data == b"x")
    found.pause_reading()
    found.resume_reading()
    theirs.send(b"y")
    await until(lambda: ear.data == b"xy")
    found.abort()
    await rest()


@on_front_loop
async def test_what_waits_is_sent_on_whoever_pauses_and_goes_on(ends: Ends) -> None:
    ear, found, theirs = listen(ends)
    found.pause_reading()
    theirs.send(b"x")
    await rest()
    length = fill(found)
    found.resume_reading()
    received = 0
    async with asyncio.timeout(DEADLINE):
        while received < length:
            received += len(take(theirs))
            await asyncio.sleep(0)
    assert ear.data == b"x"
    found.abort()
    await rest()


@on_front_loop
async def test_a_pause_from_the_beginning_holds(ends: Ends) -> None:
    ends[1].send(b"early")
    ear, found, _ = listen(ends, Ear({"connection_made": lambda found: found.pause_reading()}))
    await rest()
    assert ear.data == b""
    found.resume_reading()
    await until(lambda: ear.data == b"early")
    found.abort()
    await rest()


@on_front_loop
async def test_what_was_said_before_a_hang_up_waits_for_a_paused_endpoint(ends: Ends) -> None:
    ear, found, theirs = listen(ends)
    found.pause_reading()
    theirs.send(b"last words")
    theirs.close()
    await rest()
    assert ear.heard == ["connection_made"]
    found.resume_reading()
    await until(lambda: ear.lost)
    assert ear.data == b"last words"
    assert ear.heard == ["connection_made", "data_received", "eof_received", "connection_lost"]


@on_front_loop
async def test_what_was_said_before_a_reset_waits_for_a_paused_endpoint(tcp: Ends) -> None:
    ear, found, theirs = listen(tcp)
    found.pause_reading()
    theirs.send(b"last words")
    await rest()
    reset(theirs)
    await rest()
    assert ear.heard == ["connection_made"]
    found.resume_reading()
    await until(lambda: ear.lost)
    assert ear.data == b"last words"
    assert isinstance(ear.error, ConnectionResetError)


@on_front_loop
async def test_a_break_while_bytes_wait_is_told_to_a_paused_endpoint(tcp: Ends) -> None:
    ear, found, theirs = listen(tcp)
    found.pause_reading()
    fill(found)
    reset(theirs)
    await until(lambda: ear.lost)
    assert isinstance(ear.error, ConnectionError)
    await rest()


@on_front_loop
async def test_a_hang_up_while_bytes_wait_is_told_to_a_paused_endpoint() -> None:
    ear, found, theirs = listen(unix_pair())
    found.pause_reading()
    fill(found)
    found._handle(16)  # EPOLLHUP: the kernel says that there is room again a moment later
    assert not ear.lost
    theirs.close()
    found._handle(16)
    await until(lambda: ear.lost)
    assert isinstance(ear.error, ConnectionError)


# Ends.


@pytest.mark.parametrize("how", ["close", "abort", "reset"])
@on_front_loop
async def test_the_end_is_told_once_and_later(how: str, ends: Ends) -> None:
    ear, found, theirs = listen(ends)
    theirs.send(b"unread")
    end: Callable[[], None] = getattr(found, how)
    end()
    assert found.closing
    assert not ear.lost
    for again in (found.close, found.abort, found.reset, found.write_eof, found.resume_reading):
        again()
    found.write(b"too late")
    assert found.waiting == found.count_unsent() == 0
    await until(lambda: ear.lost)
    await rest()
    assert ear.heard == ["connection_made", "connection_lost"]
    assert ear.error is None
    assert ends[0].fileno() == -1
    for again in (found.close, found.abort, found.reset, found.write_eof, found.resume_reading):
        again()
    found.write(b"too late")
    await rest()


@pytest.mark.parametrize("how", ["close", "abort", "reset"])
@pytest.mark.parametrize("when", ["connection_made", "data_received", "eof_received"])
@pytest.mark.parametrize("keeps_open", [False, True])
@on_front_loop
async def test_an_endpoint_may_end_it_at_any_moment(
    how: str, when: str, keeps_open: bool, ends: Ends
) -> None:
    ends[1].send(b"x")
    ends[1].shutdown(socket.SHUT_WR)
    ear = Ear({when: lambda found: getattr(found, how)()}, keeps_open=keeps_open)
    listen(ends, ear)
    assert not ear.lost
    await until(lambda: ear.lost)
    await rest()
    order = ["connection_made", "data_received", "eof_received"]
    assert ear.heard == [*order[: order.index(when) + 1], "connection_lost"]
    assert ear.error is None


@pytest.mark.parametrize("when", ["pause_writing", "resume_writing"])
@on_front_loop
async def test_an_endpoint_may_end_it_when_asked_to_pause_or_go_on(when: str, ends: Ends) -> None:
    ear, found, theirs = listen(ends, Ear({when: lambda found: found.abort()}))
    found.write(b"x" * 8_000_000)
    while not ear.lost:
        theirs_said = b"" if found.closing else take(theirs)
        assert not theirs_said or set(theirs_said) == {ord("x")}
        await asyncio.sleep(0)
    assert ear.heard[-2:] == [when, "connection_lost"]
    await rest()


@on_front_loop
async def test_a_reset_cannot_be_taken_for_an_end(tcp: Ends) -> None:
    ear, found, theirs = listen(tcp)
    found.write(b"half of it")
    found.reset()
    await until(lambda: ear.lost)
    assert theirs.recv(100) == b"half of it"
    with pytest.raises(ConnectionResetError):
        theirs.recv(100)


@on_front_loop
async def test_a_close_sends_what_waits_first_and_hears_nothing_meanwhile(ends: Ends) -> None:
    ear, found, theirs = listen(ends)
    length = fill(found)
    found.close()
    found.write(b"too late")
    theirs.send(b"not heard")
    await rest()
    assert ear.heard == ["connection_made"]
    received = b""
    while not ear.lost:
        received += take(theirs) if not ear.lost else b""
        await asyncio.sleep(0)
    assert ear.heard == ["connection_made", "connection_lost"]
    assert length - len(received) <= 8_000_000


@on_front_loop
async def test_a_close_whose_peer_resets_while_bytes_wait_ends_with_that(tcp: Ends) -> None:
    ear, found, theirs = listen(tcp)
    fill(found)
    found.close()
    await rest()
    assert not ear.lost
    reset(theirs)
    await until(lambda: ear.lost)
    assert isinstance(ear.error, ConnectionError)
    assert found.waiting == 0


@on_front_loop
async def test_a_reset_is_an_error_of_the_reader(tcp: Ends) -> None:
    ear, _, theirs = listen(tcp)
    reset(theirs)
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "connection_lost"]
    assert isinstance(ear.error, ConnectionResetError)


@on_front_loop
async def test_a_reset_is_an_error_of_the_writer(tcp: Ends) -> None:
    ear, found, theirs = listen(tcp)
    reset(theirs)
    found.write(b"x")
    assert found.closing
    assert not ear.lost
    await until(lambda: ear.lost)
    assert isinstance(ear.error, OSError)
    assert ear.error.errno in (errno.EPIPE, errno.ECONNRESET)


# A write that fails, and what the other side had said before.


@pytest.mark.parametrize("how", ["a write", "what waits"])
@pytest.mark.parametrize("paused", [False, True])
@on_front_loop
async def test_what_was_said_before_a_write_failed_is_heard_by_whoever_wants_it(
    how: str, paused: bool, tcp: Ends
) -> None:
    """All of it, and then the error: the kernel tells of a reset once, and of an end from then on."""
    said = b"0123456789abcdef" * 4096
    ear, found, theirs = listen(tcp, Ear(reads_on=True))
    found.pause_reading()
    if how == "what waits":
        fill(found)
        found.write(b"x" * HIGH_WATER)
    await asyncio.get_running_loop().sock_sendall(theirs, said)
    reset(theirs)
    if how == "a write":
        found.write(b"x")
    await until(lambda: "writing_failed" in ear.heard)
    assert found.waiting == 0
    assert not found.closing
    found.write(b"x")  # to nobody
    found.write_eof()
    if paused:
        await rest()
        assert ear.data == b""
    found.resume_reading()
    await until(lambda: ear.lost)
    assert ear.data == said
    assert isinstance(ear.error, ConnectionResetError)
    assert "eof_received" not in ear.heard
    assert ear.heard.count("writing_failed") == 1
    assert ear.heard.count("pause_writing") == ear.heard.count("resume_writing")


@on_front_loop
async def test_an_end_before_a_write_failed_is_one(ends: Ends) -> None:
    ear, found, theirs = listen(ends, Ear(reads_on=True))
    found.pause_reading()
    theirs.send(b"all of it")
    theirs.close()
    while "writing_failed" not in ear.heard:  # over TCP the first one tells the kernel
        found.write(b"x")
    found.resume_reading()
    await until(lambda: ear.lost)
    assert ear.data == b"all of it"
    assert ear.heard[-3:] == ["data_received", "eof_received", "connection_lost"]
    assert ear.error is None


@on_front_loop
async def test_a_unix_socket_closed_with_bytes_unread_is_broken_after_what_it_said() -> None:
    ear, found, theirs = listen(unix_pair(), Ear(reads_on=True))
    found.write(b"unread")
    theirs.send(b"half of it")
    theirs.close()
    found.write(b"x")
    await until(lambda: ear.lost)
    assert ear.data == b"half of it"
    assert isinstance(ear.error, ConnectionResetError)
    assert "eof_received" not in ear.heard


@pytest.mark.parametrize("when", ["ended", "closing"])
@on_front_loop
async def test_whoever_has_heard_everything_is_not_asked_when_a_write_fails(when: str, tcp: Ends) -> None:
    ear, found, theirs = listen(tcp, Ear(keeps_open=True, reads_on=True))
    if when == "ended":
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: "eof_received" in ear.heard)
        await rest()
        reset(theirs)
        found.write(b"x")
    else:
        fill(found)
        found.close()
        reset(theirs)
    await until(lambda: ear.lost)
    assert "writing_failed" not in ear.heard
    assert isinstance(ear.error, ConnectionError)


# Half of an end.


@on_front_loop
async def test_our_direction_may_stay_open_after_theirs(ends: Ends) -> None:
    ear, found, theirs = listen(ends, Ear(keeps_open=True))
    theirs.send(b"question")
    theirs.shutdown(socket.SHUT_WR)
    await until(lambda: "eof_received" in ear.heard)
    await rest()
    found.resume_reading()
    await rest()
    found.write(b"answer")
    assert take(theirs) == b"answer"
    assert not ear.lost
    found.close()
    assert await take_all(theirs) == b""
    await until(lambda: ear.lost)
    assert ear.heard == ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert ear.error is None


@on_front_loop
async def test_our_direction_may_end_before_theirs(ends: Ends) -> None:
    ear, found, theirs = listen(ends)
    found.write_eof()
    found.write_eof()
    found.write(b"too late")
    assert await take_all(theirs) == b""
    theirs.send(b"still heard")
    await until(lambda: ear.data == b"still heard")
    await rest()
    assert not ear.lost
    theirs.close()
    await until(lambda: ear.lost)
    assert ear.error is None


@on_front_loop
async def test_the_end_of_our_direction_comes_after_what_waits(ends: Ends) -> None:
    ear, found, theirs = listen(ends, Ear(keeps_open=True))
    length = fill(found)
    found.write_eof()
    found.write(b"too late")
    assert await take_all(theirs) == b"f" * length
    assert not found.closing
    theirs.send(b"still heard")
    await until(lambda: ear.data == b"still heard")
    found.close()
    await until(lambda: ear.lost)


@on_front_loop
async def test_a_channel_whose_both_directions_have_ended_is_over(ends: Ends) -> None:
    ear, found, theirs = listen(ends, Ear(keeps_open=True))
    theirs.shutdown(socket.SHUT_WR)
    await until(lambda: "eof_received" in ear.heard)
    found.write(b"bye")
    found.write_eof()
    assert await take_all(theirs) == b"bye"
    await until(lambda: ear.lost)
    assert ear.error is None
    await rest()


@on_front_loop
async def test_a_reset_after_their_end_is_told(tcp: Ends) -> None:
    ear, _, theirs = listen(tcp, Ear(keeps_open=True))
    theirs.shutdown(socket.SHUT_WR)
    await until(lambda: "eof_received" in ear.heard)
    await rest()
    reset(theirs)
    await until(lambda: ear.lost)
    assert isinstance(ear.error, ConnectionError)


# Whose channel it is.


@on_front_loop
async def test_another_endpoint_hears_from_the_next_byte_on(ends: Ends) -> None:
    second = Ear()
    first, _, theirs = listen(ends, Ear({"data_received": lambda found: found.hand_to(second)}))
    theirs.send(b"one")
    await until(lambda: first.data)
    theirs.send(b"two")
    theirs.close()
    await until(lambda: second.lost)
    assert first.heard == ["connection_made", "data_received"]
    assert (first.data, second.data) == (b"one", b"two")
    assert second.heard == ["data_received", "eof_received", "connection_lost"]


@on_front_loop
async def test_whoever_has_it_last_hears_of_the_end(ends: Ends) -> None:
    first, found, _ = listen(ends)
    found.abort()
    second = Ear()
    found.hand_to(second)
    await until(lambda: second.lost)
    assert not first.lost


def fail(_: ears.channel.Channel) -> None:
    raise RuntimeError("a mistake")


@pytest.mark.parametrize(
    "when", ["connection_made", "data_received", "eof_received", "resume_writing", "connection_lost"]
)
@on_front_loop
async def test_a_mistake_of_an_endpoint_is_reported_and_ends_its_connection_only(when: str) -> None:
    reported: list[Exception] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    first, second = tcp_pair(), tcp_pair()
    other, other_channel, theirs = listen(second)
    ear = Ear({when: fail})
    ours = Channel(first[0], ear, "peer")
    ours.write(b"x" * 8_000_000)
    first[1].send(b"x")
    with first[1], theirs:
        try:
            while await loop.sock_recv(first[1], 1 << 20) and not reported:
                if when in ("eof_received", "connection_lost") and not ours.waiting:
                    first[1].shutdown(socket.SHUT_WR)
        except ConnectionResetError:
            pass
        await until(lambda: ear.lost)
        assert [str(error) for error in reported] == ["a mistake"]
        if when != "connection_lost":
            assert ear.error is reported[0]
        assert first[0].fileno() == -1
        theirs.send(b"unharmed")
        await until(lambda: other.data == b"unharmed")
        other_channel.abort()
        await rest()


@on_front_loop
async def test_a_number_that_is_used_again_in_the_same_turn_is_not_mixed_up(tcp: Ends) -> None:
    """Sockets are closed in a later turn: nothing the kernel has said of one can be told to the next."""
    pairs = [tcp_pair() for _ in range(4)]
    numbers = {ours.fileno() for ours, _ in pairs}
    late: list[Ear] = []

    def replace(_: ears.channel.Channel) -> None:
        for ear in first:
            ear.channel.abort()
        ours, theirs = tcp_pair()
        assert ours.fileno() not in numbers
        theirs.close()
        late.append(Ear(keeps_open=True))
        Channel(ours, late[0], "peer")

    first = [Ear({"data_received": replace}) for _ in pairs]
    for (ours, theirs), ear in zip(pairs, first, strict=True):
        Channel(ours, ear, "peer")
        theirs.send(b"x")
    await until(lambda: all(ear.lost for ear in first))
    assert sorted(ear.data for ear in first) == [b"", b"", b"", b"x"]
    await until(lambda: "eof_received" in late[0].heard)
    late[0].channel.abort()
    await rest()
    for _, theirs in pairs:
        theirs.close()


@on_front_loop
async def test_bytes_that_the_other_side_has_not_got_are_counted(tcp: Ends) -> None:
    number = tcp[0].fileno()
    other, another = tcp_pair()
    _, found, theirs = listen(tcp)
    assert found.count_unsent() == 0
    fill(found)
    assert found.count_unsent() > found.waiting
    await until(lambda: take(theirs) is not None and found.count_unsent() == 0)
    found.abort()
    await until(lambda: tcp[0].fileno() == -1)
    # Its number may be another one's by now.
    other.send(b"x" * 100_000)
    os.dup2(other.fileno(), number)
    assert found.count_unsent() == 0
    os.close(number)
    other.close()
    another.close()


def test_a_channel_needs_the_front_doors_loop() -> None:
    ours, theirs = tcp_pair()

    async def main() -> None:
        with pytest.raises(RuntimeError, match=FrontLoop.__name__):
            Channel(ours, Ear(), "peer")

    with ours, theirs, asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
