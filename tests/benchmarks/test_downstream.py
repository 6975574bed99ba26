"""What a checkpoint is worth for tasks: on a toy checkpoint, and the reading of the real tasks."""

import pathlib
import re

import keras
import numpy as np

import keras_bert_lib as kbl
from benchmarks import downstream

from . import trial_here

EXAMPLES = [(f"the {animal} {verb} fish", animal) for animal in ("cat", "dog", "cow") for verb in ("eats", "sees")]
TASK = downstream.Task(*(tuple(map(list, zip(*EXAMPLES * 10, strict=True))),) * 2)


def test_random_weights_are_trained_for_enough_steps(checkpoint):
    keras.utils.set_random_seed(0)
    task = downstream.Task(*(tuple(map(list, zip(*EXAMPLES, strict=True))),) * 2)
    # In three epochs there would be three steps, and a third would be right.
    assert downstream.fine_tuned(checkpoint, task, 1e-2, seed=0, scratch=True, least_steps=900) > 0.6


def test_scratch_forgets_every_weight_that_was_drawn(checkpoint):
    encoder = kbl.checkpoints.load_encoder(checkpoint)
    before = [np.array(weight) for weight in encoder.get_weights()]
    downstream._forget(encoder)
    for old, new in zip(before, encoder.get_weights(), strict=True):
        assert np.array_equal(old, new) == (np.unique(old).size == 1)


def test_what_was_measured_is_not_measured_again(checkpoint, tmp_path, monkeypatch):
    asked = []

    def fine_tuned(checkpoint, task, rate, seed, scratch, least_steps):
        asked.append((len(task.train[0]), rate, seed, scratch))
        return {1e-4: 0.5, 3e-4: 0.7, 1e-3: 0.6}[rate] + 0.01 * (seed == 1) - 0.1 * scratch

    monkeypatch.setattr(downstream, "fine_tuned", fine_tuned)
    contestants = [downstream.Contestant(row, checkpoint, 2) for row in ("pretrained", "scratch")]
    tasks = {"animals": TASK}
    lines = downstream.table(tasks, contestants, "more", downstream.FineTunings(tmp_path / "kept.jsonl"))
    # The rate on a tenth of the texts, which is held out, then two seeds of the best on all.
    tuning = [(54, rate, 100) for rate in (1e-4, 3e-4, 1e-3)]
    wanted = [*tuning, (60, 3e-4, 0), (60, 3e-4, 1)]
    assert asked == [(*each, False) for each in wanted] + [(*each, True) for each in wanted]
    assert lines[2] == "| `animals` | 60 | 70.50 ± 0.71 | 60.50 ± 0.71 | +10.00 ± 0.71 |"
    asked.clear()
    assert downstream.table(tasks, contestants, "more", downstream.FineTunings(tmp_path / "kept.jsonl")) == lines
    assert not asked


def test_other_weights_are_measured_anew_but_not_from_scratch(checkpoint, tmp_path):
    other = tmp_path / "other"
    pretrainer = kbl.tasks.BertPretrainer.from_pretrained(checkpoint)
    pretrainer.encoder.set_weights([weight + 1 for weight in pretrainer.encoder.get_weights()])
    kbl.checkpoints.save_hf(pretrainer, other)
    same = {
        row: len({downstream.Contestant(row, each, 1).fingerprint() for each in (checkpoint, other)}) == 1
        for row in ("pretrained", "scratch")
    }
    assert same == {"pretrained": False, "scratch": True}


def test_the_report_is_written(checkpoint, tmp_path):
    output = tmp_path / "downstream.md"
    text = trial_here(output, "downstream", "--trial", "--checkpoint", str(checkpoint))
    assert "| task | texts | pretrained | the same, from scratch | what pretraining adds |" in text
    assert re.search(r"\| `made up` \| [\d,]+ \| [\d.]+ \(one seed\) \| [\d.]+ \(one seed\) \| [+-][\d.]+ \|", text)
    assert len(output.with_suffix(".jsonl").read_text().splitlines()) == 2 * (3 + 1)  # rates and one seed


def test_tasks_are_read(shared_data):
    sizes = {
        "mr_sentence_polarity": (9_594, 1_068),
        "snips": (13_784, 700),
        "snips, 20 a class": (140, 700),
    }
    for name, (train, test) in sizes.items():
        task = downstream.TASKS[name](pathlib.Path(shared_data))
        assert (len(task.train[0]), len(task.test[0])) == (train, test)
        assert set(task.train[1]) == set(task.test[1])
        assert not set(task.train[0]) & set(task.test[0]) or name.startswith("snips")
