"""Write the frozen tables of `keras_bert_lib/preprocessing/text_cleaning.py` from the reference's own behaviour.

The reference is the Rust library `tokenizers`; each of its steps is asked about each code point on its own, so the
tables hold its Unicode version, not Python's or ICU's. Takes about half a minute. Run it only to move to another
version of the reference: ids may then change, which is a breaking change for whoever holds a checkpoint.

    python tests/preprocessing/make_cleaning_tables.py
"""

from __future__ import annotations

import pathlib
import unicodedata

import numpy as np
import tokenizers
from tokenizers import normalizers, pre_tokenizers

import keras_bert_lib.preprocessing

CODE_POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
# One mark of the lowest and one of the highest combining class: a character that changes places with either is a mark.
LOWEST_MARK, HIGHEST_MARK = "\u0334", "\u0345"


def bert_normalizer(**switched_on: bool) -> normalizers.BertNormalizer:
    """BERT's normalizer with nothing switched on but what is named."""
    switches = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    return normalizers.BertNormalizer(**switches | switched_on)


def intervals(characters: list[str]) -> np.ndarray:
    """Sorted code points as half-open intervals, int32 [n, 2]."""
    points = np.array([ord(c) for c in characters], "int32")
    breaks = np.flatnonzero(np.diff(points) != 1) + 1
    return np.stack([points[np.r_[0, breaks]], points[np.r_[breaks - 1, len(points) - 1]] + 1], axis=1)


def mapping(outputs: dict[str, str], name: str) -> dict[str, np.ndarray]:
    """The pairs that change something: sources [n], lengths of the outputs [n], outputs [sum of the lengths]."""
    changed = {source: output for source, output in outputs.items() if output != source}
    return {
        f"{name}_source": np.array([ord(c) for c in changed], "int32"),
        f"{name}_length": np.array([len(o) for o in changed.values()], "uint8"),
        f"{name}_output": np.array([ord(c) for o in changed.values() for c in o], "int32"),
    }


def is_settled(character: str, is_punctuation: bool, is_chinese: bool) -> bool:
    """Whether everybody sees in a character what the reference sees: what is assigned in Unicode is not reassigned.

    The reference's list of Chinese characters leaves out some (U+2B820 to U+2B91F) that BERT's own list has.
    """
    category = unicodedata.category(character)[0]
    if unicodedata.name(character, "").startswith("CJK ") and category == "L" and not is_chinese:
        return False
    return category == "P" or character.isascii() if is_punctuation else category in "LMNS"


def combining_classes(nfd: normalizers.NFD) -> dict[str, int]:
    """Every character that canonical ordering moves, with the rank of its combining class (1 = the lowest)."""

    def moves_before(mark: str, other: str) -> bool:
        return nfd.normalize_str(other + mark) == mark + other

    unchanged = [c for c in CODE_POINTS if nfd.normalize_str(c) == c]
    marks = [c for c in unchanged if moves_before(c, HIGHEST_MARK) or moves_before(LOWEST_MARK, c)]
    marks += [c for c in (LOWEST_MARK, HIGHEST_MARK) if c not in marks]
    ranked: list[list[str]] = []  # one list for each combining class, lowest first
    for mark in marks:
        place = sum(moves_before(group[0], mark) for group in ranked)
        if place < len(ranked) and not moves_before(mark, ranked[place][0]):
            ranked[place].append(mark)
        else:
            ranked.insert(place, [mark])
    return {mark: rank for rank, group in enumerate(ranked, start=1) for mark in sorted(group)}


def main() -> None:
    """Probe the installed `tokenizers` and write the tables beside the code that reads them."""
    clean, chinese = bert_normalizer(clean_text=True), bert_normalizer(handle_chinese_chars=True)
    strip, lower, nfd = bert_normalizer(strip_accents=True), bert_normalizer(lowercase=True), normalizers.NFD()
    cleaned = {c: clean.normalize_str(c) for c in CODE_POINTS}
    assert all(o in ("", " ", c) for c, o in cleaned.items())
    between_letters = {c: len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(f"a{c}a")) for c in CODE_POINTS}
    classes = combining_classes(nfd)
    # Of canonical decompositions only those matter that end in a mark: just they can be reordered with what follows.
    decomposed = {c: nfd.normalize_str(c) for c in CODE_POINTS}
    tables = {
        "dropped": intervals([c for c, o in cleaned.items() if o == ""]),
        "cleaned_to_space": intervals([c for c, o in cleaned.items() if o == " "]),
        "chinese": intervals([c for c in CODE_POINTS if chinese.normalize_str(c) == f" {c} "]),
        "whitespace": intervals([c for c, pieces in between_letters.items() if pieces == 2]),
        "punctuation": intervals([c for c, pieces in between_letters.items() if pieces == 3]),
        "settled": intervals(
            [c for c, pieces in between_letters.items() if is_settled(c, pieces == 3, chinese.normalize_str(c) != c)]
        ),
        "mark": np.array([ord(c) for c in sorted(classes)], "int32"),
        "mark_class": np.array([classes[c] for c in sorted(classes)], "uint8"),
        **mapping({c: strip.normalize_str(c) for c in CODE_POINTS}, "strip"),
        **mapping({c: lower.normalize_str(c) for c in CODE_POINTS}, "lower"),
        **mapping({c: o for c, o in decomposed.items() if o[-1] in classes}, "decompose"),
    }
    folder = pathlib.Path(keras_bert_lib.preprocessing.__file__).parent
    path = folder / f"bert_cleaning_tokenizers_{tokenizers.__version__}.npz"
    np.savez_compressed(path, **tables)
    print(f"{path.name}: {path.stat().st_size:,} bytes, " + ", ".join(f"{k} {v.shape}" for k, v in tables.items()))


if __name__ == "__main__":
    main()
