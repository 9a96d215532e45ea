"""The memory of what was read: from the second coming on, and never more than it may hold."""

from __future__ import annotations

from codius_proxy.memo import SEEN, Memo


def test_what_comes_once_is_not_remembered_and_what_comes_again_is() -> None:
    memo: Memo[int] = Memo(entries=4, length=8)
    memo.remember(b"a", 1)
    assert memo.get(b"a") is None
    memo.remember(b"a", 1)
    assert memo[b"a"] == 1


def test_it_holds_no_more_than_it_may_and_nothing_long() -> None:
    memo: Memo[int] = Memo(entries=4, length=8)
    for number in range(100):
        for _ in range(2):
            memo.remember(b"%d" % number, number)
            memo.remember(b"%d is long" % number, number)
        assert len(memo) <= 4
        assert len(memo._seen) <= 4 * SEEN
    assert max(map(len, memo)) <= 8
