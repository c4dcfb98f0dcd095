"""A key in every spelling that a server may repeat it in."""

import base64
import json
import logging
import time
import urllib.parse

import pytest

from dsd_jax.llm.scrub import Scrubber

KEY = "canary-7f3a9c/key+Z=1"
SCRUB = Scrubber(KEY)


def escaped(form: str) -> str:
    return "".join(form.format(ord(letter)) for letter in KEY)


def encoded(before: bytes) -> str:
    return base64.b64encode(before + KEY.encode() + b" and more").decode()


SPELLINGS = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "JSON": json.dumps({"key": KEY}).replace("/", "\\/"),
    "JSON in JSON": json.dumps(json.dumps({"key": KEY})),
    "unicode escapes": escaped("\\u{:04x}"),
    "unicode escapes in JSON": json.dumps(escaped("\\u{:04X}")),
    "Python escapes": escaped("\\x{:02x}"),
    "address": urllib.parse.quote(KEY, safe=""),
    "address, all letters": escaped("%{:02x}"),
    "address, twice": urllib.parse.quote(urllib.parse.quote(KEY, safe=""), safe=""),
    "address in unicode escapes": escaped("\\u0025{:02x}"),
    "HTML": escaped("&#{};"),
    "HTML, hexadecimal": escaped("&#x{:x};"),
    "hexadecimal": KEY.encode().hex(),
    "base64": encoded(b""),
    "base64, second place": encoded(b"x"),
    "base64, third place": encoded(b"xx"),
    "basic authentication": base64.urlsafe_b64encode(f"user:{KEY}".encode()).decode(),
    "base64 in an address": urllib.parse.quote(encoded(b"")),
    "base64 in lines": base64.encodebytes(b"a" * 50 + KEY.encode()).decode(),
    "first half": KEY[: len(KEY) // 2],
    "second half": KEY[len(KEY) // 2 :],
    "backwards": KEY[::-1],
    "zeros between": "\\u0000".join(KEY),
    "UTF-16": KEY.encode("utf-16-le").decode(),
    "UTF-32 in an address": urllib.parse.quote(KEY.encode("utf-32-be")),
    "base64 of a half": base64.b64encode(KEY[: len(KEY) // 2 + 1].encode()).decode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_it_is_blotted_out(spelling):
    text = f'{{"a": "before {SPELLINGS[spelling]} after"}}'
    cleaned = SCRUB.text(text)
    assert SCRUB.holds(text)
    assert not SCRUB.holds(cleaned)
    assert "[key]" in cleaned
    assert cleaned.startswith('{"a": "before ')
    assert cleaned.endswith(' after"}')


def test_bytes_that_are_not_utf8_stay():
    assert SCRUB.body(b"\xff" + KEY.encode() + b"\xfe") == b"\xff[key]\xfe"
    assert SCRUB.body(b"\xff\xfe") == b"\xff\xfe"


def test_other_encodings_are_searched():
    for encoding in ("utf-16", "utf-32", "utf-16-be"):
        cleaned = SCRUB.body(f"you sent {KEY}!".encode(encoding))
        assert b"[key]" in cleaned
        assert cleaned.replace(b"\0", b"").endswith(b"you sent [key]!")


def test_other_text_stays_as_it_is():
    text = 'A canary on a key, 100% \\u00e9\\n{"7f3a": "canary-"} &#10;'
    assert SCRUB.text(text) is text


def test_a_short_key_is_an_ordinary_word():
    assert Scrubber("none").text("none of them") == "none of them"
    assert Scrubber(None).text(KEY) == KEY


def test_a_long_answer_is_searched_quickly():
    start = time.process_time()
    SCRUB.body(b"yes \\n" * 100_000)
    SCRUB.body(KEY[:5].encode() * 100_000)
    SCRUB.body(b"%25" * 100_000)
    SCRUB.body(b"\\" * 2_000_000)
    SCRUB.body(b"a\0" * 500_000)
    assert time.process_time() - start < 10


def test_logs_are_scrubbed(caplog):
    from dsd_jax.llm.scrub import guard_logs

    caplog.set_level(logging.DEBUG)
    guard_logs(SCRUB)
    guard_logs(SCRUB)
    log = logging.getLogger("httpcore2.http11")
    log.debug("receive_response_headers %r", [(b"x-request-id", KEY.encode())])
    try:
        raise ValueError(f"100% {KEY}")
    except ValueError:
        log.exception("it failed")
    log.info("%s of %d%%", "half", 100)
    assert KEY not in caplog.text
    assert "half of 100%" in caplog.text
    assert "ValueError: 100% [key]" in caplog.text
