"""The report on a pretraining run, on a small run made by hand."""

import os

import keras
import numpy as np
import pytest

import keras_bert_lib as kbl
from benchmarks import pretraining

WORDS = ["cat", "dog", "cow", "eats", "sees", "fish", "meat", "grass", "the", "a", "old", "young"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory with two snapshots, of 30 and of 90 minutes, and the text it was trained on."""
    monkeypatch.setattr(pretraining, "CORPUS", ["train.txt"])
    monkeypatch.setattr(pretraining, "HELD_OUT", "heldout.txt")
    (tmp_path / "pretrain_text").mkdir()
    draw = np.random.default_rng(0)
    for name in ("train.txt", "heldout.txt"):
        documents = ["\n".join(" ".join(draw.choice(WORDS, 12)) for _ in range(30)) for _ in range(20)]
        (tmp_path / "pretrain_text" / name).write_text("\n\n".join(documents))
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(PIECES))
    # As the example makes it: a checkpoint spells some settings out that are None here.
    tokenizer = kbl.preprocessing.WordPieceTokenizer(vocabulary, lowercase=True)
    kbl.training.TokenizedCorpus([tmp_path / "pretrain_text" / "train.txt"], tokenizer, tmp_path / "corpus")
    encoder = kbl.models.bert(len(PIECES), 1, 16, 2, 32, max_sequence_length=128)
    pretrainer = kbl.tasks.BertPretrainer(
        encoder, kbl.preprocessing.TextPreprocessor(tokenizer, max_sequence_length=128)
    )
    began = 1_700_000_000
    (tmp_path / "tensorboard" / "train").mkdir(parents=True)
    (tmp_path / "tensorboard" / "train" / f"events.out.tfevents.{began}.host").touch()
    for step, minutes in ((10, 30), (20, 90)):
        snapshot = tmp_path / "snapshots" / f"{step:07d}"
        kbl.checkpoints.save_hf(pretrainer, snapshot)
        os.utime(snapshot / "config.json", (began + 60 * minutes,) * 2)
    kbl.checkpoints.save_hf(pretrainer, tmp_path / "hf")
    rates = "".join(f"{step},{rate}\n" for step, rate in ((10, 900.0), (10, ""), (20, 1000.0), (20, "")))
    (tmp_path / "curves.csv").write_text(f"step,tokens_per_second\n{rates}")
    (tmp_path / "curves.png").write_bytes(b"a plot")
    return tmp_path


def test_a_run_is_read_off_within_the_time_and_at_its_end(run):
    titles = list(pretraining.read_off(run, minutes=60))
    assert titles == ["after 30 minutes, step 10", "after 90 minutes, step 20"]


def test_knowledge_stands_beside_that_of_n_grams(run):
    lines = pretraining.knowledge(run, pretraining.read_off(run, 60), run)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(cells) == 5
    # Words drawn at random: nobody can do better than guess one of twelve.
    for _, right, loss, _ in cells:
        assert float(right.split("±")[0]) < 25
        assert float(loss) > np.log(len(WORDS)) - 0.3
    assert [float(row[3]) for row in cells if row[3] != "–"] == pytest.approx([50, 50, 50], abs=12)


def test_asked_tokens_stand_inside_their_segment(run):
    tokenizer = kbl.checkpoints.load_tokenizer(run / "hf")
    held = pretraining.held_out([run / "pretrain_text" / "heldout.txt"], tokenizer)
    assert held.windows.shape == (sum(int(asked.sum()) for asked in held.is_asked), 5)
    assert held.windows.min() >= 5  # no special token
    truth = [
        targets["masked_lm"].numpy()[asked] for (_, targets, _), asked in zip(held.batches, held.is_asked, strict=True)
    ]
    np.testing.assert_array_equal(held.windows[:, 2], np.concatenate(truth))


def test_the_report_says_what_was_trained(run, tmp_path, monkeypatch):
    output = tmp_path / "report" / "pretraining.md"
    output.parent.mkdir()
    monkeypatch.setattr("sys.argv", ["pretraining", str(run), "--data", str(run), "--output", str(output)])
    policy = keras.config.dtype_policy()
    try:
        pretraining.main()
    finally:
        keras.config.set_dtype_policy(policy)
    text = output.read_text()
    assert "1 layers of width 16, 17 pieces; 20 steps of 32 rows of 128 tokens" in text
    assert "950 tokens a second (from 900 to 1,000)." in text
    assert "| after 90 minutes, step 20 |" in text
    assert output.with_suffix(".png").read_bytes() == b"a plot"
