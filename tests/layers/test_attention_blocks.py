import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers.attention_blocks import pack_into_blocks

RNG = np.random.default_rng(0)
BATCHES = {
    "nothing": [],
    "one token": [1],
    "padding alone": [0, 0, 0],
    "equal": [25] * 32,
    "one long": [512, *[5] * 20],
    "a sequence without a token": [7, 0, 40, 0, 3],
    "short": np.clip(RNG.lognormal(2.6, 0.5, 64), 1, 128).astype(int),
    "long": np.clip(RNG.lognormal(5.2, 0.5, 16), 1, 512).astype(int),
    "any": RNG.integers(0, 4_096, 200),
}


def _packed(lengths) -> tuple[list[int], list[tuple[int, list[int]]]]:
    blocks = pack_into_blocks(tf.constant(lengths, tf.int32, [len(lengths)]))
    return blocks.order.numpy().tolist(), [(int(g.length), g.used.numpy().tolist()) for g in blocks.groups]


def _two_lengths(sizes: list[int]) -> tuple[int, int, int]:
    """The best of all ways to cut, tried one by one; among equals, the one with the fewest long sequences."""
    total = sum(sizes)
    room = [min(max(size, 32), total) for size in sizes]
    work = [room[0] * sum(sizes[:cut]) + room[cut] * sum(sizes[cut:]) for cut in range(len(sizes))]
    best = int(np.argmin(work))
    return sizes[best], room[0], room[best]


def _first_fit_decreasing(lengths) -> tuple[list[int], list[tuple[int, list[int]]]]:
    """The algorithm as its name says it, a sequence at a time."""
    order = [i for i in np.argsort(-np.asarray(lengths, int), kind="stable") if lengths[i]]
    if not order:
        return [], [(0, []), (0, [])]
    threshold, long_room, short_room = _two_lengths([int(lengths[i]) for i in order])
    blocks = []
    for i in order:
        block = next((b for b in blocks if sum(lengths[j] for j in b[1]) + lengths[i] <= b[0]), None)
        if block is None:
            block = (long_room if lengths[i] > threshold else short_room, [])
            blocks.append(block)
        block[1].append(i)
    used = [(room > short_room, int(sum(lengths[j] for j in members))) for room, members in blocks]
    groups = [(room, [n for is_long, n in used if is_long == long]) for room, long in ((long_room, 1), (short_room, 0))]
    return [int(i) for _, members in blocks for i in members], groups


@pytest.mark.parametrize("name", BATCHES)
def test_equals_first_fit_decreasing_into_blocks_of_the_two_best_lengths(name):
    assert _packed(BATCHES[name]) == _first_fit_decreasing(BATCHES[name])


@pytest.mark.parametrize("name", BATCHES)
def test_every_token_has_a_place_and_no_block_is_too_full(name):
    order, groups = _packed(BATCHES[name])
    assert sorted(order) == [i for i, length in enumerate(BATCHES[name]) if length]
    assert sum(sum(used) for _, used in groups) == sum(BATCHES[name])
    assert all(0 < used <= length for length, group in groups for used in group)


def test_few_long_sequences_do_not_stretch_the_blocks_of_the_others():
    order, ((long, long_used), (short, short_used)) = _packed(BATCHES["one long"])
    assert order[0] == 0
    assert (long, long_used) == (512, [512])
    assert (short, short_used) == (32, [30, 30, 30, 10])


def test_short_sequences_fill_what_the_long_ones_leave():
    _, ((long, long_used), (_, short_used)) = _packed([100, 90, *[10] * 40])
    assert long == 100
    assert long_used == [100, 100]
    assert sum(short_used) == 390


def test_equal_lengths_need_one_group_alone():
    _, ((_, long_used), (length, used)) = _packed(BATCHES["equal"])
    assert (long_used, length, len(used)) == ([], 32, 32)


def test_blocks_of_short_texts_are_nearly_full():
    """The measure of a packing: slots for each token. One sequence a row takes more than 2 here."""
    _, groups = _packed(BATCHES["short"])
    assert sum(length * len(used) for length, used in groups) < 1.1 * sum(BATCHES["short"])


def test_graph_packs_batches_of_any_size():
    graph = tf.function(pack_into_blocks, input_signature=[tf.TensorSpec([None], tf.int32)])
    for lengths in BATCHES.values():
        blocks = graph(tf.constant(lengths, tf.int32, [len(lengths)]))
        assert blocks.order.numpy().tolist() == _packed(lengths)[0]
