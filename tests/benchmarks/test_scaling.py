import re
import sys

import pytest

from benchmarks.scaling import MODELS, gradient_bytes, measured_bytes, ring_bytes, step_of

from . import trial

TOLERANCE = 0.02  # what gRPC writes around the tensors, the sums of the losses, and the metrics


@pytest.mark.skipif(sys.platform != "linux", reason="the bytes are read from the kernel by Linux's TCP_INFO")
def test_two_workers_send_the_bytes_of_the_formula():
    sent, gradients = measured_bytes(workers=2, threads=1)
    assert gradients > 2e6
    assert sent == pytest.approx(ring_bytes(gradients, 2), rel=TOLERANCE)


def test_a_ring_sends_less_than_twice_the_gradients_however_many_share_them():
    assert [ring_bytes(100, n) for n in (1, 2, 4, 100)] == [0, 100, 150, 198]


def test_gradients_are_float32_of_every_published_parameter():
    assert gradient_bytes(MODELS["BERT-Base"]) == 4 * 109_482_240
    assert gradient_bytes(MODELS["BERT-Large"]) == 4 * 335_141_888


def test_recomputation_is_one_more_forward_pass():
    plain, again = (step_of(MODELS["BERT-Base"], 1, 8, 128, 1, recompute) for recompute in (False, True))
    assert 3 * again.flops == 4 * plain.flops
    assert plain.read == 8 * (128 * 12 + 4)


def test_scaling_writes_its_tables(tmp_path):
    text = trial(tmp_path / "scaling.md", "scaling", "--workers", "--models", "BERT-Base", "--batch", "8")
    assert "438 MB of gradients" in text
    assert re.search(r"^\| 1,024 \| 1,048,576 \| 0\.54 \| 875 \|", text, re.MULTILINE)
