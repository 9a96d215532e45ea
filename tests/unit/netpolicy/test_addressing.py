"""Names and hardware addresses of links."""

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.addressing import find_address, host_mac, link_name, pod_mac

ADDRESSES = st.integers(0, 2**32 - 1).map(IPv4Address)
LONGEST_LINK_NAME = 15


@given(ADDRESSES)
def test_a_link_name_gives_its_address_back(address: IPv4Address) -> None:
    assert find_address(link_name(address)) == address


@given(ADDRESSES)
def test_a_link_name_fits_the_kernel(address: IPv4Address) -> None:
    assert len(link_name(address)) <= LONGEST_LINK_NAME


@given(ADDRESSES, ADDRESSES)
def test_two_addresses_never_share_a_name_or_a_mac(one: IPv4Address, other: IPv4Address) -> None:
    names = {link_name(one), link_name(other)}
    macs = {host_mac(one), pod_mac(one), host_mac(other), pod_mac(other)}
    assert (len(names), len(macs)) == ((1, 2) if one == other else (2, 4))


@given(ADDRESSES)
def test_macs_are_unicast_and_locally_administered(address: IPv4Address) -> None:
    for mac in (host_mac(address), pod_mac(address)):
        octets = bytes.fromhex(mac.replace(":", ""))
        assert len(octets) == 6
        assert octets[0] & 0b11 == 0b10


@given(st.text(max_size=16))
def test_a_foreign_link_name_is_no_address_of_ours(name: str) -> None:
    found = find_address(name)
    assert found is None or link_name(found) == name


def test_names_that_only_look_like_ours_are_not_ours() -> None:
    for name in ("cp", "cp0a4d000", "cp0a4d00021", "cp0A4D0002", "cpu0", "xcp0a4d0002", "cp0a4d0002\n"):
        assert find_address(name) is None, name
