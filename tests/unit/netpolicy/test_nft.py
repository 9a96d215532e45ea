"""What is read from nftables' listings."""

from hypothesis import given
from hypothesis import strategies as st

from codius_netpolicy.nft import Element, find_table, parse_elements

LISTING = """table inet codius {
\tset pod_tx {
\t\ttype ifname . ether_addr . ipv4_addr
\t\tsize 65536
\t\telements = { "cp0a4d0002" . 06:cd:0a:4d:00:02 . 10.77.0.2 counter packets 7 bytes 700,
\t\t\t     "cp0a4d0003" . 06:cd:0a:4d:00:03 . 10.77.0.3 counter packets 0 bytes 0 }
\t}
}
"""
RULESET = """table inet other {
\tchain a {
\t}
}
table inet codius {
\tchain mine {
\t}
}
table inet codius2 {
}
"""


def test_elements_come_with_their_counters() -> None:
    assert list(parse_elements(LISTING)) == [
        Element(("cp0a4d0002", "06:cd:0a:4d:00:02", "10.77.0.2"), 700, 7),
        Element(("cp0a4d0003", "06:cd:0a:4d:00:03", "10.77.0.3"), 0, 0),
    ]


def test_an_element_without_a_counter_has_counted_nothing() -> None:
    assert list(parse_elements("elements = { 10.0.0.1, 10.0.0.2 }")) == [
        Element(("10.0.0.1",), 0, 0),
        Element(("10.0.0.2",), 0, 0),
    ]


def test_an_empty_set_has_no_elements() -> None:
    assert list(parse_elements("table inet codius {\n\tset pod_rx {\n\t\ttype ipv4_addr\n\t}\n}\n")) == []


def test_only_the_table_asked_for_is_found() -> None:
    found = find_table(RULESET, "inet", "codius")
    assert found is not None
    assert "mine" in found
    assert "codius2" not in found
    assert find_table(RULESET, "inet", "codi") is None
    assert find_table("", "inet", "codius") is None


@given(st.text())
def test_a_strange_listing_is_no_error(text: str) -> None:
    list(parse_elements(text))
    find_table(text, "inet", "codius")
