"""Writes what the Rust library `tokenizers` makes of hostile texts into `reference.json`. Never run by CI.

python -m tests.golden.wordpiece.regenerate
"""

from __future__ import annotations

import json
import pathlib

import tokenizers

from tests.preprocessing.conftest import small_vocabulary
from tests.preprocessing.test_wordpiece import fuzz

OPTIONS = [
    {},
    {"lowercase": False},
    {"strip_accents": False},
    {"lowercase": False, "strip_accents": True},
    {"handle_chinese_chars": False, "clean_text": False},
]


def main() -> None:
    vocabulary = small_vocabulary()
    texts = [text for text in fuzz(seed=23, count=120) if len(text) < 60]
    cases = []
    for options in OPTIONS:
        reference = tokenizers.BertWordPieceTokenizer({piece: i for i, piece in enumerate(vocabulary)}, **options)
        rows = reference.encode_batch(texts, add_special_tokens=False)
        cases.append({"options": options, "rows": [[row.ids, row.offsets, row.word_ids] for row in rows]})
    golden = {"tokenizers": tokenizers.__version__, "vocabulary": vocabulary, "texts": texts, "cases": cases}
    path = pathlib.Path(__file__).with_name("reference.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(f"{path.stat().st_size:,} bytes, {len(texts)} texts, {len(OPTIONS)} sets of options")


if __name__ == "__main__":
    main()
