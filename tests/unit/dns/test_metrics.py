"""The counters: every kind has a place of its own, and Prometheus can read them."""

import re

from codius_dns.metrics import (
    OTHER,
    RCODES,
    SIZE,
    TRANSPORTS,
    TYPES,
    Board,
    Drop,
    render,
    slot_of,
    slot_of_drop,
)

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="[A-Za-z0-9_]*",?)+)\})? ([0-9]+)')


def test_every_kind_of_question_and_drop_has_a_place_of_its_own() -> None:
    places = [
        slot_of(transport, qtype, rcode)
        for transport in TRANSPORTS
        for qtype in (*TYPES, 65280)
        for rcode in RCODES
    ]
    places += [slot_of_drop(reason) for reason in Drop]
    assert sorted(places) == list(range(SIZE))
    assert slot_of("udp", 65280, 0) == slot_of("udp", 9, 0)


def test_the_text_says_what_was_counted_in_the_format_of_prometheus() -> None:
    counts = [0] * SIZE
    counts[slot_of("udp", 1, 0)] = 7
    counts[slot_of("tcp", 65280, 3)] = 2
    counts[slot_of_drop(Drop.RATE)] = 5
    text = render(counts, 3).decode()
    assert text.endswith("\n")
    samples = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            samples[match[1], match[2]] = int(match[3])
    assert samples["codius_dns_queries_total", 'transport="udp",type="A",rcode="NOERROR"'] == 7
    assert samples["codius_dns_queries_total", f'transport="tcp",type="{OTHER}",rcode="NXDOMAIN"'] == 2
    assert samples["codius_dns_drops_total", 'reason="rate"'] == 5
    assert samples["codius_dns_drops_total", 'reason="short"'] == 0
    assert samples["codius_dns_workers", None] == 3
    assert len(samples) == 2 + len(Drop) + 1


def test_the_board_sums_what_the_workers_wrote_last() -> None:
    board = Board(2)
    board.write(0, [1] * SIZE)
    board.write(1, [10] * SIZE)
    board.write(1, [20] * SIZE)
    assert board.sums() == [21] * SIZE
