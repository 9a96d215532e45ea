"""What no row can show: requirements that other tests keep, and those that are not ours."""

from __future__ import annotations

from typing import Final, NamedTuple


class Elsewhere(NamedTuple):
    """A requirement that needs more than bytes and their answer, and the test that sees it kept."""

    section: str
    level: str
    says: str
    test: str
    """File and name, from the tests' root."""


class Exempt(NamedTuple):
    """Sentences with a MUST in them that ask nothing of us, and why not."""

    section: str
    says: str
    why: str


ELSEWHERE: Final = (
    Elsewhere(
        "9110 3.3",
        "MUST NOT",
        "Two requests of one connection may be from two visitors: a balancer says of each whom it is from.",
        "integration/test_proxy_identity.py::test_a_trusted_proxy_says_who_its_client_is_with_each_request",
    ),
    Elsewhere(
        "9110 5.3",
        "MUST NOT",
        "No request is passed on before its head is complete.",
        "integration/test_http_smuggling.py::test_a_known_way_to_smuggle_is_refused",
    ),
    Elsewhere(
        "9110 5.6.7",
        "MUST",
        "Dates of our own are in the one format that is not obsolete, with no other white space.",
        "unit/proxy/test_pages.py::test_a_date_is_written_in_the_one_format_there_is",
    ),
    Elsewhere(
        "9110 7.6",
        "MUST NOT",
        "A request that comes back to us does not go round for ever.",
        "integration/test_http_conformance.py::test_a_request_that_comes_back_to_us_does_not_go_round_for_ever",
    ),
    Elsewhere(
        "9110 10.1.1",
        "MUST",
        "A head that expects 100 goes to the pod before its body comes.",
        "integration/test_proxy.py::test_a_visitor_that_expects_100_gets_it_from_the_pod",
    ),
    Elsewhere(
        "9110 10.1.1",
        "SHOULD",
        "Who gets a final answer instead of 100 is told that the connection ends.",
        "integration/test_proxy.py::test_a_no_to_a_visitor_that_expects_100_ends_the_connection",
    ),
    Elsewhere(
        "9110 12.5.1",
        "SHOULD",
        "The weights of Accept count, wherever among its parameters they stand.",
        "unit/proxy/test_request.py::test_a_page_is_for_who_asks_for_html_no_less_than_for_json",
    ),
    Elsewhere(
        "9112 6.3",
        "MUST",
        "A body that ends or stops early makes its request incomplete, and the connection is closed.",
        "integration/test_proxy.py::test_a_visitor_that_leaves_in_the_middle_of_its_body_ends_the_pods_work",
    ),
    Elsewhere(
        "9112 7.1",
        "MUST",
        "A chunked body ends nowhere but behind its last chunk, however it arrives.",
        "integration/test_proxy.py::test_a_chunk_that_breaks_later_never_completes_at_the_pod",
    ),
    Elsewhere(
        "9112 9.2",
        "MUST NOT",
        "What a pod says on an idle connection is no answer; the connection is closed.",
        "integration/test_proxy.py::test_bytes_nobody_asked_for_end_an_idle_connection",
    ),
    Elsewhere(
        "9112 9.3",
        "MUST",
        "A pod's answer is read to its end before its connection serves another request.",
        "integration/test_http_smuggling.py::test_content_behind_an_answer_that_has_none_is_nobodys_answer",
    ),
    Elsewhere(
        "9112 9.5",
        "SHOULD",
        "Whose time is over sees a proper end of the connection.",
        "integration/test_proxy.py::test_an_idle_visitor_is_let_go_without_a_word",
    ),
    Elsewhere(
        "9112 9.6",
        "ought to",
        "A connection is closed in two steps, so that a reset does not take the last answer away.",
        "integration/test_proxy.py::test_a_refusal_reaches_a_visitor_that_is_still_sending",
    ),
    Elsewhere(
        "9112 9.8",
        "MUST",
        "TLS ends with a closure alert of ours.",
        "integration/test_secure_channel.py::test_a_good_bye_of_ours_comes_last_and_theirs_ends_it",
    ),
    Elsewhere(
        "9112 9.8",
        "SHOULD",
        "A visitor that ends TLS without one is no error.",
        "integration/test_secure_channel.py::test_an_end_without_a_good_bye_is_an_end",
    ),
)

EXEMPT: Final = (
    Exempt(
        "9110 4.3.4",
        "A client verifies the certificate of an https resource.",
        "The way to a pod is plain HTTP inside this machine.",
    ),
    Exempt(
        "9110 7.4",
        "What is asked of an https resource comes over a connection with a certificate for its very name.",
        "That it came by TLS is seen to, in a row above. Whom a certificate is for the visitor has checked,"
        " who sent nothing before; to the front door all of its names are alike.",
    ),
    Exempt(
        "9110 7.6.3", "A proxy says in Via that an answer passed it.", "A gateway may, and this one does not."
    ),
    Exempt(
        "9110 6.5.1", "A trailer is made of permitted fields only.", "No trailer is made here; they pass."
    ),
    Exempt(
        "9110 8.4, 8.8, 13.1, 14, 15.3",
        "Encodings, validators, conditions, ranges and what their answers contain.",
        "Made by the pod, and passed on as they are: rows above. Our own pages have none of them.",
    ),
    Exempt("9110 9.3", "What GET, PUT, DELETE and their like do.", "The pod's to do."),
    Exempt("9110 9.3.6", "What a tunnel by CONNECT is like.", "There is none: 501."),
    Exempt(
        "9110 10.2.1, 11.6.1, 11.7.1",
        "A 405, 401 or 407 names what is allowed or asked for.",
        "None is made here.",
    ),
    Exempt(
        "9110 15.5.20",
        "A proxy makes no 421.",
        "A gateway may (the same section): it answers for all of its names.",
    ),
    Exempt(
        "9112 2.2, 3.2",
        "What clients put around a request, and into its target and Host.",
        "Of what goes to a pod rows above show all that is ours: its line, Host, framing.",
    ),
    Exempt(
        "9112 6.1, 6.3",
        "Chunked is sent only to servers that are known to speak HTTP/1.1.",
        "A pod has to: that its port speaks HTTP/1.1 is what its manifest says.",
    ),
    Exempt(
        "9112 7.2", "How compressed transfer codings are made and read.", "None but chunked is taken: 501."
    ),
    Exempt(
        "9112 9.3.2",
        "How a client that pipelines pairs answers with requests, and retries.",
        "A pod's connection has one request under way, never two.",
    ),
    Exempt("9112 10", "message/http and application/http.", "Media types; content is not looked at."),
    Exempt("9111", "Caches.", "Nothing is cached here."),
)
