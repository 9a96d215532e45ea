"""Zone files: the operator's static records in master file format (RFC 1035 section 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from codius_dns import wire
from codius_dns.errors import ZoneError
from codius_dns.names import Name, parse_name, parse_owner
from codius_dns.records import (
    MAX_RDATA,
    MAX_SERIAL,
    MAX_TEXT,
    MAX_TTL,
    Cname,
    Ns,
    Qtype,
    Raw,
    Record,
    RecordData,
    Soa,
)
from codius_dns.zone import MAX_RECORDS

SUFFIX: Final = ".zone"
"""Of the files in a directory of zones; what is before it is the zone's origin."""
MAX_FILE: Final = 1 << 19  # bytes: a thousand records of some hundred, and room for comments
DEFAULT_TTL: Final = 3600  # seconds, for records before any TTL was given

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION: Final = re.compile(r"(?:[0-9]{1,10}[smhdw])+|[0-9]{1,10}", re.IGNORECASE)
_DURATION_PART: Final = re.compile(r"([0-9]+)([smhdw]?)", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\f]+) | (?P<comment>;[^\n]*) | (?P<line>\n) | (?P<open>\() | (?P<close>\))
      | "(?P<quoted>(?:[^"\\\n]|\\.)*)"
      | (?P<word>(?:[^\s;()"\\]|\\.)(?:[^\s;()"\\]|\\.|"(?:[^"\\\n]|\\.)*")*)""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\([0-9]{3}|.)", re.DOTALL)
_NAME_IN: Final = {"MX": 1, "PTR": 0, "SRV": 3, "HTTPS": 1}
"""Place of the name in the data of types that dnslib reads: made absolute before it sees it."""
_WORDS: Final = {"MX": 2, "PTR": 1, "SRV": 4}
"""Words of their data: dnslib would take what it needs and leave the rest."""
_MEANT: Final = frozenset({Qtype.A, Qtype.AAAA, Qtype.NS, Qtype.CNAME, Qtype.SOA})
"""Types whose data decides about other answers."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One entry of the file, over as many lines as its parentheses took."""

    number: int
    blank: bool  # it begins with a blank: the owner is that of the entry before
    words: tuple[str, ...]


def read_zone(path: Path) -> tuple[str, tuple[Record, ...]]:
    """The origin a file is named for, and its records."""
    origin = path.name.removesuffix(SUFFIX).lower()
    try:
        if path.stat().st_size > MAX_FILE:
            raise ZoneError(f"{path} is longer than the {MAX_FILE} bytes a zone file may have")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ZoneError(
            f"the zone file {path} cannot be read: {error}",
            hint="The user of the responder has to be able to.",
        ) from error
    try:
        return origin, parse_zone(text, origin)
    except ZoneError as error:
        raise ZoneError(f"{path}: {error.message}", hint=error.hint) from error


def parse_zone(text: str, origin: str) -> tuple[Record, ...]:
    """The records of a zone file; ZoneError names the line of what cannot be served."""
    parse_name(origin)
    state = _Parser(origin.removesuffix(".") + ".")
    records = []
    for line in _lines(text):
        try:
            records += state.parse(line)
        except ZoneError as error:
            raise ZoneError(f"line {line.number}: {error.message}", hint=error.hint) from error
        except Exception as error:
            # dnslib tells of data it cannot read by whatever exception it ran into
            raise ZoneError(
                f"line {line.number}: {' '.join(line.words)!r} cannot be read: {error}",
                hint="NAME [TTL] [IN] TYPE DATA, as in `www 300 IN A 192.0.2.1`.",
            ) from error
        if len(records) > MAX_RECORDS:
            raise ZoneError(f"line {line.number}: more than {MAX_RECORDS} records")
    return tuple(records)


def _lines(text: str) -> Iterator[_Line]:
    depth = 0
    number = start = 1
    words: list[str] = []
    blank = False
    at = 0
    fresh = True  # nothing of this entry has come yet
    if not text.endswith("\n"):
        text += "\n"
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ZoneError(f"line {number}: {text[at : at + 20].splitlines()[0]!r} is not understood")
        at = match.end()
        kind = match.lastgroup
        if kind == "line":
            number += 1
            if depth == 0:
                if words:
                    yield _Line(start, blank, tuple(words))
                words, blank, fresh = [], False, True
            continue
        if kind == "space":
            blank = blank or fresh
        elif kind == "open":
            depth += 1
        elif kind == "close":
            depth -= 1
            if depth < 0:
                raise ZoneError(f"line {number}: a closing parenthesis too many")
        elif kind == "quoted":
            words.append('"' + match["quoted"])  # the mark tells "3600" from 3600; data leaves it out
        elif kind == "word":
            words.append(match["word"])
        if fresh and kind != "comment":
            start, fresh = number, False
    if depth:
        raise ZoneError(f"line {start}: a parenthesis is never closed")


class _Parser:
    """What one line says depends on those before: origin, owner and TTL."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._owner: Name | None = None
        self._ttl: int | None = None  # of $TTL
        self._last_ttl = DEFAULT_TTL

    def parse(self, line: _Line) -> list[Record]:
        words = list(line.words)
        if words[0].startswith("$"):
            self._directive(words)
            return []
        if not line.blank:
            self._owner = parse_owner(self._absolute(words.pop(0)))
        if self._owner is None:
            raise ZoneError("the first record has no name", hint="Begin the line with one, or with @.")
        ttl: int | None = None
        in_class = False
        while words:  # in either order, each at most once
            if ttl is None and _DURATION.fullmatch(words[0]):
                ttl = _seconds(words.pop(0))
            elif not in_class and words[0].upper() in ("IN", "CH", "HS", "CS"):
                if words.pop(0).upper() != "IN":
                    raise ZoneError("only the class IN is served")
                in_class = True
            else:
                break
        if ttl is None:
            ttl = self._last_ttl if self._ttl is None else self._ttl
        self._last_ttl = ttl
        if len(words) < 2:
            raise ZoneError("a record needs a type and data", hint="As in `www 300 IN A 192.0.2.1`.")
        mnemonic = words.pop(0).upper()
        return [Record(self._owner, ttl, data) for data in self._data(mnemonic, words)]

    def _directive(self, words: Sequence[str]) -> None:
        match words:
            case [name, value] if name.upper() == "$ORIGIN":
                origin = self._absolute(value)
                parse_name(origin)
                self._origin = origin
            case [name, value] if name.upper() == "$TTL" and _DURATION.fullmatch(value):
                self._ttl = _seconds(value)
            case _:
                raise ZoneError(
                    f"{' '.join(words)!r} is not understood", hint="$ORIGIN and $TTL are; $INCLUDE is not."
                )

    def _absolute(self, word: str) -> str:
        if word == "@":
            return self._origin
        return word if word.endswith(".") else f"{word}.{self._origin}"

    def _name(self, word: str) -> Name:
        return parse_name(self._absolute(word))

    def _data(self, mnemonic: str, words: list[str]) -> Iterator[RecordData]:
        if words[0] == "\\#":  # RFC 3597 section 5
            data = bytes.fromhex("".join(words[2:]))
            if int(words[1]) != len(data):
                raise ZoneError(f"{words[1]} bytes are announced and {len(data)} there")
            yield from _decode(wire.parse_type(mnemonic), data)
            return
        match mnemonic, words:
            case "A", [address]:
                yield IPv4Address(address)
            case "AAAA", [address]:
                yield IPv6Address(address)
            case "NS", [target]:
                yield Ns(self._name(target))
            case "CNAME", [target]:
                yield Cname(self._name(target))
            case "TXT", _:
                strings = [_bytes(word) for word in words]
                if any(len(string) > MAX_TEXT for string in strings):
                    raise ZoneError(
                        f"a string of more than {MAX_TEXT} bytes",
                        hint='Divide it: "first part" "second part".',
                    )
                yield Raw(wire.parse_type("TXT"), b"".join(bytes((len(each),)) + each for each in strings))
            case "SOA", [mname, rname, serial, *times] if len(times) == 4:
                if not 0 <= int(serial) <= MAX_SERIAL:
                    raise ZoneError(f"{serial} is no serial")
                refresh, retry, expire, minimum = map(_seconds, times)
                user = self._absolute(rname)
                yield Soa(self._name(mname), _mailbox(user), int(serial), refresh, retry, expire, minimum)
            case _:
                plain = [word.replace('"', "") for word in words]
                number = wire.parse_type(mnemonic)
                if number in _MEANT or len(plain) != _WORDS.get(mnemonic, len(plain)):
                    raise ZoneError(f"{' '.join(plain)!r} is not the data of a record of type {mnemonic}")
                if mnemonic in _NAME_IN:
                    place = _NAME_IN[mnemonic]
                    plain[place] = self._absolute(plain[place])
                    if plain[place] != ".":
                        parse_name(plain[place])
                yield Raw(number, wire.parse_rdata(mnemonic, plain))


def _decode(rtype: int, data: bytes) -> Iterator[RecordData]:
    if len(data) > MAX_RDATA:
        raise ZoneError(f"{len(data)} bytes of data are more than the {MAX_RDATA} one record may have")
    if rtype in _MEANT:
        raise ZoneError(f"{Qtype(rtype).name} has to be written in words: answers depend on what it says")
    yield Raw(rtype, data)


def _mailbox(text: str) -> Name:
    r"""A SOA's mailbox: `hostmaster.example.org.`, a dot in the user's part written as `\.`."""
    user, rest = re.match(r"((?:[^.\\]|\\.)+)\.(.*)\Z", text, re.DOTALL).groups()  # type: ignore[union-attr]
    local = _bytes(user)
    return Name(bytes((len(local),)) + local + parse_name(rest))


def _bytes(word: str) -> bytes:
    r"""A character-string without its marks: `\DDD` is a byte, `\X` is X (RFC 1035 section 5.1)."""
    word = word.removeprefix('"')
    parts = []
    at = 0
    for match in _ESCAPE.finditer(word):
        parts.append(word[at : match.start()].encode())
        code = match[1]
        parts.append(bytes((int(code),)) if len(code) == 3 else code.encode())
        at = match.end()
    return b"".join((*parts, word[at:].encode()))


def _seconds(word: str) -> int:
    if not _DURATION.fullmatch(word):
        raise ZoneError(f"{word!r} is no length of time", hint="Seconds, or as in 1h30m.")
    seconds = sum(int(count) * _SECONDS[unit.lower()] for count, unit in _DURATION_PART.findall(word))
    if seconds > MAX_TTL:
        raise ZoneError(f"{word!r} is more than the {MAX_TTL} s a TTL may have")
    return seconds
