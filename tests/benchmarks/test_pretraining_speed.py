import math
import re

import numpy as np
import pytest

from benchmarks.pretraining_speed_contestant import batches_of, check_first_loss

from . import trial_here

JOB = {"vocabulary_size": 1_000, "sequence_length": 128, "predictions": 20, "batch_size": 50, "batches": 20}


def share_of_real_tokens(batches):
    masks = [batch["padding_mask"] for batch in batches]
    return sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)


def test_pairs_are_full_but_for_one_row_in_ten():
    batches = batches_of({**JOB, "texts": "pairs"})
    lengths = np.concatenate([batch["padding_mask"].sum(axis=1) for batch in batches])
    assert np.mean(lengths == 128) == pytest.approx(0.9, abs=0.03)
    assert lengths.min() >= 5
    assert share_of_real_tokens(batches) == pytest.approx(0.95, abs=0.02)


def test_half_of_the_positions_of_documents_is_padding():
    assert share_of_real_tokens(batches_of({**JOB, "texts": "documents"})) == pytest.approx(0.5, abs=0.03)


def test_batches_by_length_hold_the_same_tokens_and_little_padding():
    documents, sorted_documents = (batches_of({**JOB, "texts": f"documents{end}"}) for end in ("", "_by_length"))
    totals = [sum(batch["token_ids"].sum() for batch in batches) for batches in (documents, sorted_documents)]
    assert totals[0] == totals[1]
    assert share_of_real_tokens(sorted_documents) > 0.9


def test_masked_places_are_real_tokens_between_the_special_ones():
    for batch in batches_of({**JOB, "texts": "documents"}):
        lengths = batch["padding_mask"].sum(axis=1)
        for positions, weights, length in zip(batch["mask_positions"], batch["mask_weights"], lengths, strict=True):
            masked = positions[weights == 1]
            assert len(masked) == len(set(masked)) == min(20, max(1, round(0.15 * length)))
            assert masked.min() >= 1
            assert masked.max() < length - 1


def test_a_first_loss_without_next_sentence_is_refused():
    check_first_loss(math.log(1_000) + math.log(2), 1_000)
    with pytest.raises(ValueError, match=r"must be about ln V \+ ln 2 = 7\.60\. Received: 6\.91\."):
        check_first_loss(math.log(1_000), 1_000)


def test_pretraining_speed_writes_a_table(tmp_path):
    options = ["--trial", "--cases", "mini-32", "--texts", "documents", "--precisions", "float32", "--batches", "2"]
    text = trial_here(tmp_path / "table.md", "pretraining_speed", *options)
    number = r"[\d,.]+"
    assert re.search(
        rf"^\| this library \| {number} \| {number} \| 0% \| {number} \| {number} \| 1\.00 \|$", text, re.M
    )
    assert re.search(rf'^\| this library, `padding="keep"` \| {number} \|', text, re.MULTILINE)
    assert "| Model Garden, `BertPretrainerV2` | absent: not asked for |" in text
