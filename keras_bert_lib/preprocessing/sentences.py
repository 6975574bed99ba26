"""Paragraphs of Western prose to sentences, by rules."""

from __future__ import annotations

import re

# Behind a mark that ends a sentence, and quotes and brackets that close there, stands white space, and then something
# that begins one.
_BOUNDARY = re.compile(r"""(?<=[.!?…])(?P<closing>["'”’»)\]]*)\s+(?=["'“‘«(\[¿¡—–]*[\dA-ZÀ-ÖØ-ÞĀ-ŽΑ-ΩА-Я])""")
# Words whose full stop ends no sentence, and initials, as in "J. S. Bach".
_ABBREVIATIONS = frozenset(
    """
    mr mrs ms mx dr prof rev hon st sr jr gen col maj capt lt sgt adm gov sen rep pres messrs mme mlle
    vs e.g i.e cf viz ca approx jan feb apr aug sept oct nov dec u.s u.k inc ltd co corp
    """.split()  # noqa: SIM905 - a list of as many literals is no text
)
# Words whose full stop ends none where a number follows, and which else are words of their own.
_BEFORE_NUMBERS = frozenset("no nos fig figs eq p pp vol vols ch sec art".split())  # noqa: SIM905
_LAST_WORD = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)\.$")
# Characters of a sentence's end that are looked at, so that a paragraph takes no time in square: more than the longest
# abbreviation has.
_END = 16


def split_sentences(text: str) -> list[str]:
    """Cut a paragraph into its sentences.

    A sentence ends at ".", "!", "?" or "…", with the quotes and brackets that close there, where white space and a
    capital letter or a digit follow. It does not end behind an initial or a usual English abbreviation. For scripts
    without capitals, and for text that needs more than rules, take a library made for it: any function of a string to
    strings can stand in this one's place.

    Args:
        text: One paragraph.
    Returns:
        Its sentences without the white space between them; none for white space alone.
    Example:
    >>> split_sentences('"Who?" asked Mr. J. Smith. Nobody answered... 3 men came.')
    ['"Who?" asked Mr. J. Smith.', 'Nobody answered...', '3 men came.']
    """
    sentences, start = [], 0
    for boundary in _BOUNDARY.finditer(text):
        end = boundary.end("closing")
        if not boundary["closing"] and _is_abbreviation(text[max(start, end - _END) : end], text[boundary.end()]):
            continue
        sentences.append(text[start:end])
        start = boundary.end()
    sentences.append(text[start:])
    return [sentence.strip() for sentence in sentences if sentence.strip()]


def _is_abbreviation(end: str, following: str) -> bool:
    word = _LAST_WORD.search(end)
    # "I" is a word more often than an initial.
    return word is not None and (
        word[1].lower() in _ABBREVIATIONS
        or (following.isdigit() and word[1].lower() in _BEFORE_NUMBERS)
        or (len(word[1]) == 1 and word[1].isupper() and word[1] != "I")
    )
