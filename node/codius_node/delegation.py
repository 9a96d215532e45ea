"""`codiusd dns check`: whether the world finds a zone, and what to enter at the registrar so that it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from codius_dns.client import ask
from codius_dns.errors import DnsError
from codius_dns.names import Name, ancestors, parse_name, to_text
from codius_dns.records import Ns, Qtype, Rcode, Reply, Said
from codius_dns.table import Table
from codius_dns.zone import Zone
from codius_node.errors import CodiusError

RESOLV_CONF: Final = Path("/etc/resolv.conf")
DNS_PORT: Final = 53
MAX_SERVERS: Final = 8  # of the parent zone, and of ours, that are asked: enough to see them disagree
SAMPLE: Final = "a" * 52  # a hash no pod has: hash names resolve whether there is a pod or not
OTHER_RESOLVER: Final = "Name a resolver that reaches the Internet with --resolver, such as 9.9.9.9."
_RESOLVER: Final = re.compile(r"^nameserver\s+(\S+)", re.MULTILINE)
_ADDRESSES: Final = (Qtype.A, Qtype.AAAA)


class CheckError(CodiusError):
    """The check could not be made."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the parent zone has to say of ours, and what ours says."""

    origin: Name
    nameservers: tuple[str, ...]  # as text, with the dot at the end
    glue: tuple[tuple[str, str], ...]  # name and address of those within the zone
    addresses: frozenset[str]  # that hash names lead to; empty for a zone without them

    @classmethod
    def of(cls, zone: Zone) -> Wanted:
        """By what the responder itself would answer."""
        table = Table((zone,))
        origin = parse_name(zone.origin)
        answer = table.find(origin, Qtype.NS)
        servers = [to_text(record.data.target) for record in answer.records if isinstance(record.data, Ns)]
        glue = [(to_text(record.owner or origin), str(record.data)) for record in answer.additional]
        addresses = (*zone.ipv4, *zone.ipv6) if zone.hashes else ()
        return cls(origin, tuple(servers), tuple(glue), frozenset(map(str, addresses)))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: a sentence, and what to do when it is not well."""

    well: bool
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Checker:
    """Walks from the resolver to the parent zone, from there to our servers, and back to the resolver."""

    wanted: Wanted
    resolver: str
    port: int = DNS_PORT  # of everybody asked

    def run(self) -> Iterator[Finding]:
        """Findings in the order of the walk; a step that nobody can go on from is the last."""
        try:
            parent = self._find_parent()
            servers = self._find_servers(parent)
        except DnsError as error:
            yield Finding(False, error.message, error.hint or OTHER_RESOLVER)
            return
        yield Finding(True, f"the zone above is {to_text(parent)}, served by {', '.join(servers)}")
        delegated: dict[str, set[str]] = {}
        for address in servers.values():
            finding, found = self._check_parent(parent, address)
            yield finding
            delegated |= found
        for name, known in delegated.items():
            addresses = known or self._resolve(parse_name(name))
            if not addresses:
                yield Finding(False, f"the name server {name} has no address", f"Give {name} its A record.")
            for address in sorted(addresses):
                yield from self._check_server(name, address)
        if self.wanted.addresses:
            yield self._check_sample()

    def _ask(self, server: str, name: Name, qtype: int, *, tcp: bool = False) -> Reply:
        return ask(server, name, qtype, port=self.port, tcp=tcp, recursive=server == self.resolver)

    def _find_parent(self) -> Name:
        for above in ancestors(self.wanted.origin):
            reply = self._ask(self.resolver, above, Qtype.SOA)
            if any(said.rtype == Qtype.SOA and said.owner == to_text(above) for said in reply.answer):
                return above
        raise DnsError(
            f"the resolver {self.resolver} knows no zone above {to_text(self.wanted.origin)}",
            hint=OTHER_RESOLVER,
        )

    def _find_servers(self, parent: Name) -> dict[str, str]:
        reply = self._ask(self.resolver, parent, Qtype.NS)
        servers: dict[str, str] = {}
        for said in reply.answer:
            if said.rtype == Qtype.NS and len(servers) < MAX_SERVERS:
                for address in sorted(self._resolve(parse_name(said.data)))[:1]:
                    servers[said.data] = address
        if not servers:
            raise DnsError(f"the resolver {self.resolver} knows no name server of {to_text(parent)}")
        return servers

    def _resolve(self, name: Name) -> set[str]:
        found: set[str] = set()
        for qtype in _ADDRESSES:
            try:
                found |= _data(self._ask(self.resolver, name, qtype).answer, qtype)
            except DnsError:
                continue  # the other family may do
        return found

    def _check_parent(self, parent: Name, server: str) -> tuple[Finding, dict[str, set[str]]]:
        """What one server of the zone above says of ours."""
        try:
            reply = self._ask(server, self.wanted.origin, Qtype.NS)
        except DnsError as error:
            return Finding(False, f"{to_text(parent)}: {error.message}", "Try again later."), {}
        return judge_parent(self.wanted, server, reply)

    def _check_server(self, name: str, address: str) -> Iterator[Finding]:
        """Whether one of our servers answers as one, both ways."""
        for tcp in (False, True):
            try:
                reply = self._ask(address, self.wanted.origin, Qtype.SOA, tcp=tcp)
            except DnsError as error:
                yield Finding(
                    False, f"{name}: {error.message}", "Open port 53 for UDP and TCP on the way to it."
                )
                continue
            yield judge_server(self.wanted, f"{name} ({address}) over {'TCP' if tcp else 'UDP'}", reply)

    def _check_sample(self) -> Finding:
        name = parse_name(f"{SAMPLE}.{to_text(self.wanted.origin)}")
        found = self._resolve(name)
        if found == self.wanted.addresses:
            return Finding(True, f"pods' names resolve, to {', '.join(sorted(found))}")
        return Finding(
            False,
            f"pods' names resolve to {', '.join(sorted(found)) or 'nothing'}"
            f" and should to {', '.join(sorted(self.wanted.addresses))}",
            "With everything above well it is an old answer: wait for its TTL.",
        )


def judge_parent(wanted: Wanted, server: str, reply: Reply) -> tuple[Finding, dict[str, set[str]]]:
    """What a server of the zone above says of ours: a finding, and the name servers with their addresses."""
    origin = to_text(wanted.origin)
    names = {
        said.data
        for said in (*reply.answer, *reply.authority)
        if said.rtype == Qtype.NS and said.owner == origin
    }
    if not names:
        why = f"{server} delegates nothing for {origin} ({_rcode(reply.rcode)})"
        return Finding(False, why, "Enter what is listed above at the registrar."), {}
    known = {
        name: {said.data for said in reply.additional if said.owner == name and said.rtype in _ADDRESSES}
        for name in sorted(names)[:MAX_SERVERS]
    }
    wrong = [f"it lacks the name server {name}" for name in wanted.nameservers if name not in names]
    wrong += [f"it has the name server {name} too" for name in sorted(names - set(wanted.nameservers))]
    for name in sorted(names & {name for name, _ in wanted.glue}):
        right = {address for owner, address in wanted.glue if owner == name}
        if known[name] != right:
            has = ", ".join(sorted(known[name])) or "no address"
            wrong.append(f"it has {has} for {name} instead of {', '.join(sorted(right))}")
    if wrong:
        hint = "Correct it at the registrar; what is right is listed above."
        return Finding(False, f"{server} delegates {origin}, but {'; '.join(wrong)}", hint), known
    return Finding(True, f"{server} delegates {origin} to {', '.join(sorted(names))}"), known


def judge_server(wanted: Wanted, server: str, reply: Reply) -> Finding:
    """Whether an answer for the SOA is that of a server of the zone."""
    if reply.rcode == Rcode.NOERROR and reply.authoritative and _data(reply.answer, Qtype.SOA):
        return Finding(True, f"{server} answers for {to_text(wanted.origin)}")
    return Finding(
        False,
        f"{server} does not answer for {to_text(wanted.origin)} ({_rcode(reply.rcode)})",
        "Is codius-dns running there, with this CODIUS_PUBLIC_URI? Another DNS server may have the port.",
    )


def render_entries(wanted: Wanted) -> Iterator[str]:
    """What belongs into the zone above, line by line."""
    origin = to_text(wanted.origin)
    for name in wanted.nameservers:
        yield f"{origin} NS {name}"
    for name, address in wanted.glue:
        yield f"{name} {'AAAA' if ':' in address else 'A'} {address}    (glue: the name is within the zone)"


def check(zone: Zone, resolver: str | None, say: Callable[[str], object], port: int = DNS_PORT) -> bool:
    """Say what to enter and what is found; whether all is well."""
    wanted = Wanted.of(zone)
    say(f"At the registrar of {to_text(wanted.origin)}, or in the zone above it, there has to be:")
    for line in render_entries(wanted):
        say(f"  {line}")
    well = True
    for finding in Checker(wanted, resolver or find_resolver(RESOLV_CONF), port).run():
        say(f"{'ok' if finding.well else 'not ok'}: {finding.message}")
        if finding.hint is not None:
            say(f"  {finding.hint}")
        well = well and finding.well
    return well


def find_resolver(path: Path) -> str:
    """The first resolver this machine is set up with."""
    try:
        match = _RESOLVER.search(path.read_text())
    except OSError as error:
        raise CheckError(
            f"{path} cannot be read: {error}", hint="Name a resolver with --resolver."
        ) from error
    if match is None:
        raise CheckError(f"{path} names no resolver", hint="Name one with --resolver.")
    return match[1]


def find_zone(zones: tuple[Zone, ...], name: str | None) -> Zone:
    """The zone of this name, or the host's own."""
    if name is None:
        return zones[0]
    wanted = parse_name(name)
    for zone in zones:
        if parse_name(zone.origin) == wanted:
            return zone
    served = ", ".join(zone.origin for zone in zones)
    raise CheckError(
        f"{name} is none of the zones served here: {served}",
        hint="The host's own zone is that of CODIUS_PUBLIC_URI; others have a file in CODIUS_DNS_ZONES.",
    )


def _data(records: tuple[Said, ...], qtype: int) -> set[str]:
    return {said.data for said in records if said.rtype == qtype}


def _rcode(number: int) -> str:
    return Rcode(number).name if number in set(Rcode) else f"rcode {number}"
