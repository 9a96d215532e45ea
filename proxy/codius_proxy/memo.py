"""What was read before: a bounded memory of bytes and what they mean."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

SEEN: Final = 16  # times as many hashes of what came once, as there are entries

T = TypeVar("T")


class Memo(dict[bytes, T], Generic[T]):
    """Bytes to their meaning, from their second coming on; looked up like any dict.

    Most of what comes once never comes again (a cookie of its own, a counter in a line), and must cost
    neither memory nor those who come again their place. When it is full, all is forgotten at once.
    """

    def __init__(self, *, entries: int, length: int) -> None:
        super().__init__()
        self._entries = entries
        self._length = length  # bytes of the longest that is remembered
        self._seen: set[int] = set()

    def remember(self, key: bytes, value: T) -> None:
        if len(key) > self._length:
            return
        mark = hash(key)
        if mark not in self._seen:
            if len(self._seen) >= self._entries * SEEN:
                self._seen.clear()
            self._seen.add(mark)
            return
        if len(self) >= self._entries:
            self.clear()
        self[key] = value
