"""The proxy's own answers."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser

import pytest

from codius_proxy.pages import REASONS, Refusal, http_date, render

EVIL = Refusal(404, "<script>alert(1)</script> & {braces}", "")


@pytest.mark.parametrize("status", sorted(REASONS))
@pytest.mark.parametrize("html", [False, True])
def test_an_answer_is_complete(status: int, html: bool) -> None:
    head, _, body = render(Refusal(status, "What.", "Do."), html=html, head_only=False, close=True).partition(
        b"\r\n\r\n"
    )
    lines = head.decode("ascii").split("\r\n")
    assert lines[0] == f"HTTP/1.1 {status} {REASONS[status]}"
    assert f"Content-Length: {len(body)}" in lines
    assert "Cache-Control: no-cache" in lines
    assert "Connection: close" in lines
    assert any(line.startswith("Retry-After") for line in lines) is (status == 503)


def test_a_program_gets_json_with_the_recorded_names() -> None:
    body = render(Refusal(404, "What.", "Do."), html=False, head_only=False, close=False).partition(
        b"\r\n\r\n"
    )[2]
    assert json.loads(body) == {"statusCode": 404, "error": "Not Found", "message": "What.", "hint": "Do."}


def test_whoever_reports_a_problem_can_say_which_request_it_was_and_to_whom() -> None:
    for html in (False, True):
        head, _, body = render(
            Refusal(404, "What.", "Do."),
            html=html,
            head_only=False,
            close=False,
            request_id="c0ffee-1f",
            contact="Ada <ada@host.example>",
        ).partition(b"\r\n\r\n")
        assert b"X-Request-Id: c0ffee-1f" in head
        if html:
            assert b"<code>c0ffee-1f</code>" in body
            assert b"Ada &lt;ada@host.example&gt;" in body
        else:
            document = json.loads(body)
            assert (document["requestId"], document["contact"]) == ("c0ffee-1f", "Ada <ada@host.example>")


def test_the_operators_words_are_read_in_their_own_direction() -> None:
    """Arabic or Hebrew after our words would have its figures and full stops on the wrong side."""
    contact = "مركز الاستضافة، ops@host.example، هاتف +20 2 5555."
    page = render(
        Refusal(404, "What.", "Do."), html=True, head_only=False, close=False, contact=contact
    ).decode()
    assert f"<bdi>{contact}</bdi>" in page


def test_a_page_about_what_will_be_over_soon_asks_again_by_itself() -> None:
    for passing in (False, True):
        page = render(Refusal(503, "What.", "Do.", passing=passing), html=True, head_only=False, close=False)
        assert (b'http-equiv="refresh"' in page) is passing


def test_a_redirect_says_where_to() -> None:
    head = render(
        Refusal(308, "What.", "Do.", location="https://host.example/"),
        html=False,
        head_only=True,
        close=False,
        policy=b"\r\nX-Ours: 1",
    )
    assert b"\r\nLocation: https://host.example/\r\n" in head
    assert head.endswith(b"\r\nX-Ours: 1\r\n\r\n")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (784887151, "Tue, 15 Nov 1994 08:12:31 GMT"),
        (951782400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (4102444799, "Thu, 31 Dec 2099 23:59:59 GMT"),
    ],
)
def test_a_date_is_written_in_the_one_format_there_is(seconds: int, shown: str) -> None:
    assert http_date(seconds) == shown
    assert parsedate_to_datetime(shown).timestamp() == seconds


@pytest.mark.parametrize("status", sorted(REASONS))
def test_no_page_sets_a_cookie_and_every_one_has_a_word_for_the_metrics(status: int) -> None:
    refusal = Refusal(status, "What.", "Do.")
    page = render(refusal, html=True, head_only=False, close=False, request_id="1", contact="x")
    assert b"cookie" not in page.lower()
    assert re.fullmatch("[a-z_]+", refusal.label)


def test_a_page_shows_a_strangers_text_as_text_and_needs_nothing_from_elsewhere() -> None:
    page = render(EVIL, html=True, head_only=False, close=False).partition(b"\r\n\r\n")[2].decode()
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}

    Tags().feed(page)
    assert "script" not in tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; {braces}" in page
    assert "url(" not in page
    assert "viewport" in page


def test_the_answer_to_head_has_the_length_and_no_body() -> None:
    full = render(EVIL, html=True, head_only=False, close=False)
    head = render(EVIL, html=True, head_only=True, close=False)
    assert head.endswith(b"\r\n\r\n")
    assert full.startswith(head.split(b"Date:")[0])
    assert f"Content-Length: {len(full) - len(head)}".encode() in head
