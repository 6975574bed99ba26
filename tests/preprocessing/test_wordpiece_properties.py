"""What holds for every text, whatever it is; hypothesis looks for one for which it does not."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_bert_lib.preprocessing import WordPieceTokenizer
from keras_bert_lib.preprocessing.token_finder import BACKENDS

# Batches of one text mostly, since a failure is then small; the alphabet is all of Unicode, now and then ASCII alone.
TEXTS = st.lists(st.text() | st.text("abcdefgixyzthefilm#[]M .,!'\n\x00", max_size=30), min_size=1, max_size=4)
BYTES = st.lists(st.binary(max_size=30), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=BACKENDS)
def both(request, vocabulary, make_reference):
    reference = make_reference(vocabulary)
    reference._tokenizer.encode_special_tokens = True
    return WordPieceTokenizer(vocabulary, backend=request.param), reference


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXTS)
@example(["\ud800"[:0], "a\u302e\u0301\u1bf2b", "\x00", "[MASK]", "\U0010ffff" * 3])
def test_ids_offsets_and_words_equal_the_reference(both, texts):
    tokenizer, reference = both
    tokens = tokenizer.tokenize_with_offsets(texts)
    encodings = reference.encode_batch(texts, add_special_tokens=False)
    assert tokenizer(texts).to_list() == tokens.token_ids.to_list() == [encoding.ids for encoding in encodings]
    spans = [
        list(zip(*spans, strict=True)) for spans in zip(tokens.starts.to_list(), tokens.ends.to_list(), strict=True)
    ]
    assert spans == [encoding.offsets for encoding in encodings]
    assert tokens.word_ids.to_list() == [encoding.word_ids for encoding in encodings]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(BYTES | TEXTS)
def test_offsets_lie_inside_the_text_in_either_unit(both, texts):
    tokenizer, _ = both
    encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
    by_byte = tokenizer.tokenize_with_offsets(texts, unit="bytes")
    by_point = tokenizer.tokenize_with_offsets(texts)
    rows = zip(encoded, *(ragged.to_list() for ragged in (*by_byte[1:3], *by_point[1:3])), strict=True)
    for text, *columns in rows:
        characters = text.decode(errors="replace")
        for start, end, first, last in zip(*columns, strict=True):
            assert 0 <= start < end <= len(text)
            assert 0 <= first < last <= len(characters)
            assert text[start:end].decode(errors="replace") == characters[first:last]
