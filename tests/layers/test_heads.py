import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.layers import ClassificationHead, MaskedLMHead, NextSentenceHead, TransformerEmbeddings

from . import numpy_reference as reference

VOCABULARY, WIDTH = 13, 8
X = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype("float32")
MASK_POSITIONS = np.array([[4, 0, 0], [2, 3, 1]], "int32")
IDS = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], "int32")


def _masked_lm_head(embedding_dim: int = WIDTH, **options) -> MaskedLMHead:
    head = MaskedLMHead(TransformerEmbeddings(VOCABULARY, WIDTH, embedding_dim, 16), **options)
    head.build((None, None, WIDTH))
    return reference.randomized(head)


def _expected_logits(x: np.ndarray, head: MaskedLMHead, activation=reference.gelu, epsilon=1e-12) -> np.ndarray:
    weights = reference.weights_of(head)
    x = activation(reference.dense(x, reference.below(weights, "dense")))
    x = reference.layer_norm(x, reference.below(weights, "norm"), epsilon)
    return x @ head.embeddings.token.embeddings.numpy().astype("float64").T + weights["output_bias"]


@pytest.mark.parametrize("embedding_dim", [WIDTH, 3], ids=["full", "factorised"])
def test_masked_lm_head_equals_numpy_at_the_masked_positions(embedding_dim):
    head = _masked_lm_head(embedding_dim)
    rows = np.take_along_axis(X, MASK_POSITIONS[..., np.newaxis], axis=1)
    np.testing.assert_allclose(head(X, MASK_POSITIONS), _expected_logits(rows, head), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head(X), _expected_logits(X, head), rtol=1e-5, atol=1e-5)


def test_masked_lm_head_takes_its_activation_and_epsilon():
    head = _masked_lm_head(activation="relu", layer_norm_epsilon=0.1)
    expected = _expected_logits(X, head, lambda x: np.maximum(x, 0), 0.1)
    np.testing.assert_allclose(head(X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_positions_may_be_of_either_int(dtype):
    head = _masked_lm_head()
    np.testing.assert_array_equal(head(X, MASK_POSITIONS.astype(dtype)), head(X, MASK_POSITIONS))


def _pretraining_model() -> keras.Model:
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    positions = keras.Input((None,), dtype="int32", name="mask_positions")
    embeddings = TransformerEmbeddings(VOCABULARY, WIDTH, dropout=0.0, max_sequence_length=16, name="embeddings")
    logits = MaskedLMHead(embeddings, name="masked_lm")(embeddings(ids), mask_positions=positions)
    return keras.Model({"token_ids": ids, "mask_positions": positions}, logits)


def _tables(model: keras.Model) -> list[keras.Variable]:
    return [v for v in model.trainable_variables if tuple(v.shape) == (VOCABULARY, WIDTH)]


def test_shared_table_is_counted_once_and_trained_from_both_ends():
    model = _pretraining_model()
    embeddings, head = model.get_layer("embeddings"), model.get_layer("masked_lm")
    assert len(_tables(model)) == 1
    assert model.count_params() == sum(
        int(np.prod(shape))
        for shape in [(VOCABULARY, WIDTH), (16, WIDTH), (2, WIDTH), *[(WIDTH,)] * 5, (WIDTH, WIDTH), (VOCABULARY,)]
    )
    batch = {"token_ids": IDS, "mask_positions": MASK_POSITIONS}
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.nn.log_softmax(model(batch))[..., 12])
    table = head.embeddings.token.embeddings
    gradient = tf.convert_to_tensor(tape.gradient(loss, table.value)).numpy()
    assert np.any(gradient[12])  # never an input: from the head alone
    model.optimizer = keras.optimizers.SGD(0.1)
    before = table.numpy()
    model.optimizer.apply([gradient], [table])
    np.testing.assert_allclose(embeddings.token.embeddings, before - 0.1 * gradient, rtol=1e-5, atol=1e-6)


def test_table_is_shared_again_after_reloading(tmp_path):
    model = _pretraining_model()
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(len(variable.path)).normal(size=variable.shape))
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    assert reloaded.get_layer("masked_lm").embeddings is reloaded.get_layer("embeddings")
    assert len(_tables(reloaded)) == 1
    assert [v.path for v in reloaded.weights] == [v.path for v in model.weights]
    batch = {"token_ids": IDS, "mask_positions": MASK_POSITIONS}
    np.testing.assert_array_equal(reloaded(batch), model(batch))


def test_masked_lm_head_wants_the_layer_and_not_its_table():
    with pytest.raises(ValueError, match=r"`embeddings` must be the TransformerEmbeddings layer.*Received: ndarray"):
        MaskedLMHead(np.zeros((VOCABULARY, WIDTH)))


def test_next_sentence_head_is_a_projection():
    head = NextSentenceHead()
    head.build((None, WIDTH))
    reference.randomized(head)
    expected = reference.dense(X[:, 0], reference.below(reference.weights_of(head), "dense"))
    np.testing.assert_allclose(head(X[:, 0]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", [X[:, 0], X], ids=["pooled", "per_token"])
def test_classification_head_is_a_projection(inputs):
    head = ClassificationHead(num_classes=3)
    head.build(inputs.shape)
    reference.randomized(head)
    expected = reference.dense(inputs, reference.below(reference.weights_of(head), "dense"))
    np.testing.assert_allclose(head(inputs), expected, rtol=1e-5, atol=1e-6)


def test_classification_head_drops_inputs_in_training_only():
    """A kernel of unit vectors hands the inputs on, the dropped ones as zeros."""
    head = ClassificationHead(num_classes=256, dropout=0.25)
    head.build((None, 256))
    head.dense.kernel.assign(np.eye(256))
    ones = np.ones((200, 256), "float32")
    np.testing.assert_array_equal(head(ones), ones)
    output = head(ones, training=True).numpy()
    assert abs(np.mean(output == 0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / ones.size)
    np.testing.assert_allclose(output[output != 0], 1 / 0.75, rtol=1e-6)


def test_logits_keep_float32_digits_under_mixed_precision():
    """The bias is added in float32: one of 100 + 2^-10 would be 100 in bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    next_sentence, classification, masked_lm = NextSentenceHead(), ClassificationHead(2), _masked_lm_head()
    for head, inputs in ((next_sentence, X[:, 0]), (classification, X[:, 0]), (masked_lm, X)):
        head(inputs)
        for variable in head.trainable_variables:
            variable.assign(np.zeros(variable.shape))
        bias = head.output_bias if head is masked_lm else head.dense.bias
        bias.assign(np.full(bias.shape, 100 + 2**-10))
        logits = head(inputs)
        assert logits.dtype == "float32"
        np.testing.assert_array_equal(logits, np.full(logits.shape, np.float32(100 + 2**-10)))


@pytest.mark.parametrize("num_classes", [0, -2])
def test_no_class_is_refused(num_classes):
    with pytest.raises(ValueError, match=f"`num_classes` must be at least 1. Received: num_classes={num_classes}"):
        ClassificationHead(num_classes)
