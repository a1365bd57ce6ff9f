"""Read text as people save it: UTF-8 with a byte order mark or without, UTF-16, and older code pages."""

from __future__ import annotations

import codecs
import unicodedata
from itertools import pairwise

BYTE_ORDER_MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
REPLACEMENT = "\ufffd"  # left by a conversion that went wrong
LEAST_ASCII_LETTERS = 3  # in text of a Latin code page
LEAST_OTHER_BYTES = 6  # in text without them: of fewer, the code page is a guess
LOW_QUOTES = "\u201a\u201e\u00ab"  # they open quotations, so no letter stands before one
SIGNS = "†‡ˆ‰§¶¬¤¦¨´¸»™®±"  # no letter stands behind one
SPACES = "\t\n\v\f\r\x85"


class TextError(ValueError):
    """Text that cannot be read: the rule, what was given, the remedy."""


def check_encoding(encoding: str) -> None:
    """Raise TextError for a name that is no encoding of Python's; an empty one is allowed."""
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise TextError(f"an encoding must be one of Python's, such as gb18030 or cp1251; got {encoding!r}") from None


def decode_text(content: bytes, name: str, encoding: str = "") -> str:
    """Decode a text file, without its byte order mark.

    Tried in order: the byte order mark, UTF-8, UTF-16 with zero bytes, then `encoding` if it is given, or else the code
    page that Firefox's detector finds (chardetng), where the text is long enough to tell. Raises TextError that names
    the file where none gives readable text.
    """
    for mark, marked in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return _checked(content, marked, name)
    if b"\0" not in content and _is_utf8(content):
        return _checked(content, "utf-8", name)
    if (wide := _utf16_without_mark(content)) is not None:
        return _checked(content, wide, name)
    return _checked(content, encoding or _guess(content, name), name)


def _is_utf8(content: bytes) -> bool:
    """Return whether bytes are UTF-8 text. Some Chinese of GBK is too, but reads as letters of several scripts."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    scripts = {unicodedata.name(one, "").split(" ")[0] for one in text if 127 < ord(one) < 0x800 and one.isalpha()}
    return len(scripts) <= 1 or any(ord(one) >= 0x800 for one in text)


def _checked(content: bytes, encoding: str, name: str) -> str:
    """Decode in one encoding. Raises TextError where the bytes do not fit it, or give what no text has."""
    try:
        text = content.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise TextError(f"{name} must be text in {encoding}; {error}; save it as UTF-8") from error
    odd = next((one for one in text if one not in SPACES and (one == REPLACEMENT or _is_no_text(one))), None)
    if odd is not None:
        raise TextError(f"{name} must be readable text; as {encoding} it holds U+{ord(odd):04X}; save it as UTF-8")
    return text


def _is_no_text(one: str) -> bool:
    """Return whether a character is a control character, unassigned or private."""
    return unicodedata.category(one) in ("Cc", "Cn", "Co")


def _utf16_without_mark(content: bytes) -> str | None:
    """Return which UTF-16 a text without a byte order mark is in; None where few of its bytes are zero."""
    half = len(content) // 2
    if not half or len(content) % 2:
        return None
    even, odd = content[::2].count(0), content[1::2].count(0)
    if min(even, odd) > 0.1 * half or max(even, odd) < 0.5 * half:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _guess(content: bytes, name: str) -> str:
    """Guess a code page. Raises TextError where the text is too short, or would read oddly."""
    from chardetng_py import EncodingDetector

    detector = EncodingDetector()
    detector.feed(content, last=True)
    guess, western = (detector.guess(tld=domain, allow_utf8=False) for domain in (None, b"us"))
    try:
        text = content.decode(guess)
    except (UnicodeDecodeError, LookupError):
        text = ""
    one_letter = sum(ord(one) > 127 and one.isalpha() for one in text) == 1 and guess != western
    if not text or one_letter or not _is_plausible(content, text):
        raise TextError(
            f"{name} must be text in UTF-8; it is not, and its code page cannot be told (perhaps {guess}); save it as "
            "UTF-8, or give --encoding NAME"
        )
    return guess


def _is_plausible(content: bytes, text: str) -> bool:
    """Return whether decoded text is long enough for a guess, and has no capitals or signs within its words."""
    letters, high = sum(chr(one).isalpha() for one in content if one < 128), sum(one >= 128 for one in content)
    latin = all("LATIN" in unicodedata.name(one, "") for one in text if one.isalpha())
    if letters < LEAST_ASCII_LETTERS if latin else high < LEAST_OTHER_BYTES:
        return False
    return not latin or not any(_is_odd(before, one) for before, one in pairwise(f" {text}"))


def _is_odd(before: str, one: str) -> bool:
    """Return whether two characters of a Latin code page are such as a wrong code page gives."""
    if one.isupper() and before.islower():
        return ord(one) > 127  # "itÕs" of "it’s"
    if one.isalpha():
        return before in SIGNS  # "†ber" of "Über"
    return before.isalpha() and one in LOW_QUOTES  # "caf‚" of "café"
