import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training.global_loss import GlobalLoss

LOGITS = np.random.default_rng(0).normal(size=(5, 4, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 3, (5, 4))
WEIGHTS = np.random.default_rng(2).uniform(size=(5, 4)).astype("float32")


def mean(loss, y, y_pred, sample_weight=None, parts=1, **kwargs):
    """Loss from the sums and weights of unequal parts of the batch."""
    loss = GlobalLoss(loss, **kwargs)
    cuts = [0, 1, 3, 5] if parts == 3 else [0, 5]
    totals = 0
    for start, end in itertools.pairwise(cuts):
        cut = keras.tree.map_structure(
            lambda t, a=start, b=end: None if t is None else tf.constant(t)[a:b], (y, y_pred, sample_weight)
        )
        totals += np.array([loss.sums(*cut), loss.weights(*cut)])
    return float((np.array(loss.loss_weights) * totals[0] / totals[1]).sum())


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "mean_with_sample_weight"])
def test_parts_of_a_batch_add_up_to_the_loss_of_keras(reduction, weights):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    expected = float(loss(LABELS, LOGITS, weights))
    assert mean(loss, LABELS, LOGITS, weights, parts=3) == pytest.approx(expected, rel=1e-6)
    assert loss.reduction == reduction


@pytest.mark.parametrize(
    ("loss", "y", "y_pred"),
    [
        ("mse", LOGITS * 0.5, LOGITS),
        ("mae", LOGITS[:, 0, 0], LOGITS[:, 0, 0]),  # a vector, of which Keras returns the mean
        (lambda y, y_pred: tf.reduce_mean((y - y_pred) ** 2), LOGITS * 0.5, LOGITS),
        ("crossentropy", LABELS, tf.nn.softmax(LOGITS).numpy()),
        ("ce", tf.one_hot(LABELS, 3).numpy(), tf.nn.softmax(LOGITS).numpy()),
        ("ce", LABELS[:, :1] > 0, 1 / (1 + np.exp(-LOGITS[:, 0, :1]))),
    ],
)
def test_all_forms_of_a_loss_give_what_keras_gives(loss, y, y_pred):
    model = keras.Sequential([keras.layers.Identity()])
    model.compile(loss=loss)
    expected = float(model.compute_loss(y=tf.constant(y), y_pred=tf.constant(y_pred)))
    assert mean(loss, y, y_pred, parts=3) == pytest.approx(expected, rel=1e-5)


def test_a_mask_leaves_positions_out_of_the_mean():
    y_pred = tf.constant(LOGITS)
    mask = WEIGHTS > 0.4
    y_pred._keras_mask = tf.constant(mask)
    loss = GlobalLoss(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    sums, weights = loss.sums(tf.constant(LABELS), y_pred), loss.weights(tf.constant(LABELS), y_pred)
    each = -tf.math.log_softmax(LOGITS).numpy()[np.arange(5)[:, None], np.arange(4), LABELS]
    assert float(weights[0]) == mask.sum()
    assert float(sums[0]) == pytest.approx(each[mask].sum(), rel=1e-6)


@pytest.mark.parametrize("container", [list, dict])
def test_several_outputs_take_lists_and_dicts(container):
    a, b = LOGITS[:, 0], LOGITS[:, 1]
    expected = 2.0 * np.mean(a**2) + 0.5 * np.mean(np.abs(b))
    as_container = (lambda x, y: [x, y]) if container is list else (lambda x, y: {"a": x, "b": y})
    value = mean(
        as_container("mse", "mae"),
        as_container(np.zeros_like(a), np.zeros_like(b)),
        [a, b],
        loss_weights=as_container(2.0, 0.5),
        output_names=["a", "b"],
    )
    assert value == pytest.approx(expected, rel=1e-6)


def test_an_output_without_a_loss_needs_no_labels():
    assert mean({"a": "mse"}, {"a": 0 * LOGITS}, {"a": LOGITS, "b": LOGITS}) == pytest.approx(
        np.mean(LOGITS**2), rel=1e-6
    )


def test_several_losses_are_shown_one_by_one():
    loss = GlobalLoss("mse", output_names=["a", "b"])
    loss.build([LOGITS, LOGITS], [LOGITS, LOGITS])
    assert [metric.name for metric in loss.metrics] == ["a_loss", "b_loss"]


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ({"wrong": "mse"}, [LOGITS, LOGITS], r"`loss` must fit the model's outputs \['a', 'b'\]. .* \['wrong'\]"),
        (["mse"] * 3, [LOGITS, LOGITS], "`loss` must fit .* Received 3 entries"),
        ("mse", LOGITS, "`y` must be a list or dict of as many labels"),
        (keras.losses.MeanSquaredError(reduction="none"), [LOGITS, LOGITS], "must be reduced to one number"),
    ],
)
def test_what_does_not_fit_the_outputs_is_named(loss, y, message):
    with pytest.raises(ValueError, match=message):
        GlobalLoss(loss, output_names=["a", "b"]).sums(y, [LOGITS, LOGITS])
