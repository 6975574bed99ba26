import pathlib
import sys

import numpy as np
import pytest

from keras_bert_lib.layers import FeedForward, MaskedLMHead, SelfAttention, TransformerEmbeddings
from keras_bert_lib.layers.initializers import truncated_normal, weights_start_unset


def test_normal_of_0_02_cut_at_two_deviations():
    values = np.asarray(truncated_normal()((200, 200)))
    assert np.abs(values).max() <= 0.04
    # A standard normal cut at 2 has a deviation of 0.8796.
    assert abs(values.std() - 0.02 * 0.8796) < 1e-4
    assert abs(values.mean()) < 5 * 0.0176 / 200


def test_every_kernel_and_table_starts_from_it():
    embeddings = TransformerEmbeddings(200, 64, 32, 128, num_segments=40)
    parts = [embeddings, SelfAttention(2), FeedForward(128), MaskedLMHead(embeddings)]
    for part in parts:
        part.build((None, None, 64))
        for variable in part.trainable_variables:
            values = variable.numpy()
            if variable.name in ("kernel", "embeddings"):
                assert abs(values.std() - 0.0176) < 1e-3, variable.path
            else:
                assert np.all(values == (1 if variable.name == "gamma" else 0)), variable.path


@pytest.mark.skipif(sys.platform != "linux", reason="what is resident is read from /proc, which Linux alone has")
def test_weights_that_will_be_set_take_no_memory_before():
    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    with weights_start_unset():
        TransformerEmbeddings(1_000_000, 50, 50, 128).build((None, None))  # 200 MB
    assert resident() - before < 20e6
