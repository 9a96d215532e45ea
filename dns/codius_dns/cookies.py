"""DNS cookies (RFC 7873, RFC 9018): how an asker over UDP shows that its address is its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

from codius_dns.query import CLIENT_COOKIE
from codius_dns.siphash import KEY_SIZE, keyed

VERSION: Final = 1  # RFC 9018 section 4.1
COOKIE: Final = CLIENT_COOKIE + 16  # bytes: the client's, version, reserved, time, hash
MAX_AGE: Final = 3600  # seconds a cookie counts, RFC 9018 section 4.3
RENEW_AGE: Final = 1800  # seconds until a new one is given along with an answer
MAX_AHEAD: Final = 300  # seconds a cookie may come from the future: clocks of several machines differ
SECRET_LIFE: Final = 7 * 86400  # seconds; RFC 7873 section 7.1 asks for 36 days at most

MAX_RECENT: Final = 8192  # cookies remembered, of some sixty bytes: a resolver keeps its own for long

_FRESH: Final = bytes((VERSION, 0, 0, 0))  # version and reserved bytes of those we make


def compute_cookie(digest: Callable[[bytes], bytes], client: bytes, head: bytes, asker: bytes) -> bytes:
    """The whole cookie: the client's, version, reserved bytes and time, hash (RFC 9018 section 4.4)."""
    return client + head + digest(client + head + asker)


class Cookies:
    """Makes and checks server cookies. Workers that share the seed take each other's."""

    def __init__(self, seed: bytes | None = None) -> None:
        self._seed = secrets.token_bytes(KEY_SIZE) if seed is None else seed
        self._recent: dict[bytes, bytes] = {}  # cookies made here, by the client's and its address
        self._digests: dict[int, Callable[[bytes], bytes]] = {}  # by the number of the secret's life

    def make(self, cookie: bytes, asker: bytes, now: int) -> bytes:
        """The cookie for an answer to one that came with this one, from this address (packed)."""
        who = cookie[:CLIENT_COOKIE] + asker
        recent = self._recent.get(who)
        if recent is not None and 0 <= _age(recent, now) < RENEW_AGE:
            return recent
        head = _FRESH + (now % 2**32).to_bytes(4)
        made = compute_cookie(self._digest(now), cookie[:CLIENT_COOKIE], head, asker)
        if len(self._recent) >= MAX_RECENT:
            self._recent.clear()  # those who ask often are soon back
        self._recent[who] = made
        return made

    def age(self, cookie: bytes, asker: bytes, now: int) -> int | None:
        """How many seconds ago we gave this cookie to this address; None when we did not, or too long ago."""
        if len(cookie) != COOKIE or cookie[CLIENT_COOKIE] != VERSION:
            return None
        age = _age(cookie, now)
        if not -MAX_AHEAD <= age <= MAX_AGE:
            return None
        if self._recent.get(cookie[:CLIENT_COOKIE] + asker) == cookie:
            return age
        # The reserved bytes count as they came (RFC 9018 section 4.2).
        head = cookie[CLIENT_COOKIE : CLIENT_COOKIE + 8]
        right = compute_cookie(self._digest(now - age), cookie[:CLIENT_COOKIE], head, asker)
        return age if secrets.compare_digest(cookie, right) else None

    def _digest(self, at: int) -> Callable[[bytes], bytes]:
        """By the secret in force then: each follows from the seed, so that no worker has to be told."""
        life = at // SECRET_LIFE
        found = self._digests.get(life)
        if found is None:
            if len(self._digests) > 1:
                self._digests.clear()  # this one and the one before are all that can be asked for
            derive = keyed(self._seed)
            secret = derive(b"low" + life.to_bytes(8)) + derive(b"high" + life.to_bytes(8))
            found = self._digests[life] = keyed(secret)
        return found


def _age(cookie: bytes, now: int) -> int:
    """In seconds; its time has 32 bits, and wraps (RFC 9018 section 4.3)."""
    return (now - int.from_bytes(cookie[CLIENT_COOKIE + 4 : CLIENT_COOKIE + 8]) + 2**31) % 2**32 - 2**31
