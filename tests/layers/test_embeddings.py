import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import TokenLayout, TransformerEmbeddings

from . import numpy_reference as reference

VOCABULARY, WIDTH, POSITIONS = 13, 8, 6
IDS = np.array([[5, 5, 0, 12], [1, 2, 3, 4]], "int32")
SEGMENTS = np.array([[0, 0, 1, 1], [1, 0, 1, 0]], "int32")


def _embeddings(embedding_dim: int | None = None, **options) -> TransformerEmbeddings:
    layer = TransformerEmbeddings(VOCABULARY, WIDTH, embedding_dim, max_sequence_length=POSITIONS, **options)
    layer.build((None, None))
    return reference.randomized(layer)


def _expected(weights: reference.Weights, segments: np.ndarray | None, epsilon: float = 1e-12) -> np.ndarray:
    x = weights["token/embeddings"][IDS] + weights["position/embeddings"][: IDS.shape[1]]
    if "segment/embeddings" in weights:
        x = x + weights["segment/embeddings"][np.zeros_like(IDS) if segments is None else segments]
    x = reference.layer_norm(x, reference.below(weights, "norm"), epsilon)
    return reference.dense(x, reference.below(weights, "projection")) if "projection/kernel" in weights else x


@pytest.mark.parametrize("segments", [SEGMENTS, None], ids=["segments", "no_segments"])
@pytest.mark.parametrize("embedding_dim", [None, 3], ids=["full", "factorised"])
def test_equals_numpy(embedding_dim, segments):
    layer = _embeddings(embedding_dim, layer_norm_epsilon=1e-3)
    expected = _expected(reference.weights_of(layer), segments, epsilon=1e-3)
    np.testing.assert_allclose(layer(IDS, segments), expected, rtol=1e-5, atol=1e-5)


def test_without_segment_ids_every_token_is_of_segment_0():
    layer = _embeddings()
    np.testing.assert_array_equal(layer(IDS), layer(IDS, np.zeros_like(IDS)))
    assert np.any(layer(IDS) != layer(IDS, SEGMENTS))


def test_no_segment_table_without_segments():
    layer = _embeddings(num_segments=0)
    np.testing.assert_allclose(layer(IDS), _expected(reference.weights_of(layer), None), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="`segment_ids` were passed, but the layer has no segment table"):
        layer(IDS, SEGMENTS)


def test_factorised_tables_are_narrow_and_projected():
    shapes = {name: value.shape for name, value in reference.weights_of(_embeddings(3)).items()}
    assert shapes == {
        "token/embeddings": (VOCABULARY, 3),
        "position/embeddings": (POSITIONS, 3),
        "segment/embeddings": (2, 3),
        "norm/gamma": (3,),
        "norm/beta": (3,),
        "projection/kernel": (3, WIDTH),
        "projection/bias": (WIDTH,),
    }
    assert "projection/kernel" not in reference.weights_of(_embeddings(WIDTH))


def test_dropout_is_behind_the_norm():
    """Before the norm, nothing would come out as exactly zero."""
    layer = TransformerEmbeddings(VOCABULARY, 256, max_sequence_length=64, dropout=0.25)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, size=(4, 64))
    output, dropped = layer(ids).numpy(), layer(ids, training=True).numpy()
    zero = dropped == 0
    assert abs(np.mean(zero) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / zero.size)
    np.testing.assert_allclose(dropped[~zero], output[~zero] / 0.75, rtol=1e-5)


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_rounds_once_behind_the_norm(policy, in_graph):
    """The three rows are summed and normed in float32, so only the last digit of the output may be lost."""
    layer = _embeddings(dtype=policy)
    exact = _expected(reference.weights_of(layer), SEGMENTS)
    half = 2.0 ** -(8 if "bfloat16" in policy else 11)
    embed = tf.function(layer) if in_graph else layer
    np.testing.assert_allclose(tf.cast(embed(IDS, SEGMENTS), tf.float32), exact, rtol=half, atol=1e-5)


def test_gradient_of_a_repeated_token_adds_up():
    """Token 5 stands at two positions: its gradient is that of two tokens that each stand once."""
    layer = _embeddings()
    weights = np.random.default_rng(1).normal(size=(1, 2, WIDTH)).astype("float32")

    def gradient(ids: list[int]) -> np.ndarray:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(np.array([ids])) * weights)
        return tf.convert_to_tensor(tape.gradient(loss, layer.token.embeddings.value)).numpy()

    twice = gradient([5, 5])
    table = layer.token.embeddings.numpy()
    table[6] = table[5]
    layer.token.embeddings.assign(table)
    apart = gradient([5, 6])
    np.testing.assert_allclose(twice[5], apart[5] + apart[6], rtol=1e-5, atol=1e-6)
    assert not np.any(np.delete(twice, 5, axis=0))


def test_longest_sequence_fits_and_one_token_more_is_refused():
    layer = _embeddings()
    assert layer(np.ones((1, POSITIONS), "int32")).shape == (1, POSITIONS, WIDTH)
    with pytest.raises(ValueError, match=r"max_sequence_length=6 rows. Received: token_ids of shape \(1, 7\)"):
        layer(np.ones((1, POSITIONS + 1), "int32"))


def test_too_long_sequence_is_refused_where_the_length_is_only_known_in_the_graph():
    embed = tf.function(_embeddings(), input_signature=[tf.TensorSpec([None, None], tf.int32)])
    assert embed(tf.ones([1, POSITIONS], tf.int32)).shape == (1, POSITIONS, WIDTH)
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_sequence_length=6 rows"):
        embed(tf.ones([1, POSITIONS + 1], tf.int32))


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_positions_begin_again_in_each_sequence_of_a_packed_batch(padding):
    layer = _embeddings()
    layout = TokenLayout(padding, packed=True)(np.array([[1, 1, 2, 0], [1, 2, 2, 2]]))
    packed = layer(IDS, SEGMENTS, layout=layout)
    if padding == "keep":
        packed = tf.boolean_mask(packed, layout["padding_mask"] > 0)
    own = [IDS[0, :2], IDS[0, 2:3], IDS[1, :1], IDS[1, 1:]]
    segments = [SEGMENTS[0, :2], SEGMENTS[0, 2:3], SEGMENTS[1, :1], SEGMENTS[1, 1:]]
    alone = [layer(ids[np.newaxis], ids_of[np.newaxis])[0] for ids, ids_of in zip(own, segments, strict=True)]
    if padding == "remove":  # the longest sequence comes first
        alone = [alone[3], alone[0], alone[1], alone[2]]
    np.testing.assert_allclose(packed, np.concatenate(alone), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_of_a_packed_batch_each_sequence_must_fit(padding):
    layer, layout = _embeddings(), TokenLayout(padding, packed=True)
    ids = np.ones((1, 2 * POSITIONS), "int32")
    assert layer(ids, layout=layout(np.repeat([[1, 2]], POSITIONS, axis=1))).shape[-1] == WIDTH
    too_long = layout(np.repeat([[1, 2]], [POSITIONS + 1, POSITIONS - 1], axis=1))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"=6 rows. Received: a longer sequence in token_ids"):
        layer(ids, layout=too_long)


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ({"vocabulary_size": 0}, "token"),
        ({"max_sequence_length": 0}, "position"),
        ({"num_segments": -1}, "segment"),
    ],
)
def test_table_without_rows_is_refused(options, table):
    with pytest.raises(ValueError, match=f"The {table} table needs at least 1 row. Received: "):
        TransformerEmbeddings(**{"vocabulary_size": VOCABULARY, "hidden_dim": WIDTH, **options})


@pytest.mark.parametrize("widths", [{"hidden_dim": 0}, {"hidden_dim": 8, "embedding_dim": 0}])
def test_a_width_of_nothing_is_refused(widths):
    with pytest.raises(ValueError, match="widths must be at least 1"):
        TransformerEmbeddings(10, **widths)
