import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib import models
from keras_bert_lib.layers import CLSPooler, TransformerEncoder
from keras_bert_lib.models.part import part_for

SIZES = {"num_layers": 2, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16}
FAMILIES = {
    "bert": lambda **options: models.bert(20, **SIZES, **options),
    "albert": lambda **options: models.albert(20, **SIZES, embedding_dim=4, **options),
    "no_segments": lambda **options: models.transformer_model(vocabulary_size=20, **SIZES, num_segments=0, **options),
}
IDS = np.array([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 10, 3]])
SEGMENTS = np.array([[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]])
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def _batch(model: keras.Model, **changes) -> dict[str, np.ndarray]:
    everything = {"token_ids": IDS, "segment_ids": SEGMENTS, "padding_mask": MASK, **changes}
    return {name: everything[name] for name in model.input}


def _randomized(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(1.0 if variable.name == "gamma" else 0.0, 0.3, size=variable.shape))
    return model


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def test_inputs_and_outputs_keep_the_contract(family):
    model = family()
    assert isinstance(model, keras.Model) and model.operations  # a functional one
    names = ["token_ids", "segment_ids", "padding_mask"]
    if family is FAMILIES["no_segments"]:
        names.remove("segment_ids")
    assert list(model.input) == names
    assert {(x.name, x.shape, x.dtype) for x in model.inputs} == {(name, (None, None), "int32") for name in names}
    assert {name: x.shape for name, x in model.output.items()} == {
        "sequence_output": (None, None, 8),
        "pooled_output": (None, 8),
    }
    outputs = model(_batch(model))
    assert {name: x.shape for name, x in outputs.items()} == {"sequence_output": (2, 6, 8), "pooled_output": (2, 8)}


def test_takes_what_it_needs_out_of_a_dict_by_name(family):
    """A preprocessor makes more: offsets, and segments for an encoder that has none."""
    model = family()
    more = {"segment_ids": SEGMENTS, **_batch(model), "ends": IDS * 0 + 1, "starts": IDS * 0}
    inputs = {name: keras.Input((None,), dtype="int32") for name in more} | {"ends": keras.Input((20,), dtype="int32")}
    assert model(inputs)["sequence_output"].shape == (None, None, 8)
    for name, expected in model(_batch(model)).items():
        np.testing.assert_array_equal(model(more)[name], expected, err_msg=name)
        np.testing.assert_allclose(model.predict(more, verbose=0)[name], expected, atol=1e-6, err_msg=name)


def test_layers_have_the_names_of_the_contract(family):
    names = [layer.name for layer in family().layers]
    blocks = ["block_0"] if family is FAMILIES["albert"] else ["block_0", "block_1"]
    assert [name for name in names if name == "embeddings" or name.startswith("block")] == ["embeddings", *blocks]
    assert names.count("pooler") == 1


def test_variable_paths_are_unique_and_begin_with_the_layer(family):
    """Two models in one process: a path that Keras made unique by a number would show in the second."""
    first, second = family(), family()
    paths = [v.path for v in second.weights]
    assert len(set(paths)) == len(paths)
    assert paths == [v.path for v in first.weights]
    assert {path.split("/")[0] for path in paths} == {"embeddings", "pooler"} | {
        layer.name for layer in second.layers if layer.name.startswith("block_")
    }


def test_weights_of_bert_have_the_names_that_checkpoints_rely_on():
    shapes = {v.path: tuple(v.shape) for v in FAMILIES["bert"]().weights}
    block = {
        "attention/qkv/kernel": (8, 24),
        "attention/qkv/bias": (24,),
        "attention/output/kernel": (8, 8),
        "attention/output/bias": (8,),
        "attention_norm/gamma": (8,),
        "attention_norm/beta": (8,),
        "feed_forward/intermediate/kernel": (8, 16),
        "feed_forward/intermediate/bias": (16,),
        "feed_forward/output/kernel": (16, 8),
        "feed_forward/output/bias": (8,),
        "feed_forward_norm/gamma": (8,),
        "feed_forward_norm/beta": (8,),
    }
    assert shapes == {
        "embeddings/token/embeddings": (20, 8),
        "embeddings/position/embeddings": (512, 8),
        "embeddings/segment/embeddings": (2, 8),
        "embeddings/norm/gamma": (8,),
        "embeddings/norm/beta": (8,),
        **{f"block_{i}/{name}": shape for i in range(2) for name, shape in block.items()},
        "pooler/dense/kernel": (8, 8),
        "pooler/dense/bias": (8,),
    }


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_model_reloads_bit_for_bit(family, padding, tmp_path):
    model = _randomized(family(padding=padding))
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    expected, actual = model(_batch(model)), reloaded(_batch(model))
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name])
    assert [v.path for v in reloaded.weights] == [v.path for v in model.weights]


def test_removing_and_keeping_padding_agree_on_real_tokens(family):
    removed, kept = _randomized(family(padding="remove")), _randomized(family(padding="keep"))
    one, other = removed(_batch(removed)), kept(_batch(kept))
    real = MASK.astype(bool)
    np.testing.assert_allclose(one["sequence_output"][real], other["sequence_output"][real], rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(one["pooled_output"], other["pooled_output"], rtol=1e-5, atol=2e-5)
    assert not np.any(one["sequence_output"][~real])


HOSTILE_MASKS = {
    "nothing but padding": np.zeros((3, 6), "int32"),
    "a row of padding": np.array([[1, 1, 1, 0, 0, 0], [0] * 6, [1] * 6], "int32"),
    "one token and the maximum": np.array([[1, 0, 0, 0, 0, 0], [1] * 6, [1] * 6], "int32"),
    "holes": np.array([[1, 0, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1]], "int32"),
    "no row": np.zeros((0, 6), "int32"),
}


@pytest.mark.parametrize("mask", HOSTILE_MASKS.values(), ids=HOSTILE_MASKS)
def test_hostile_masks_give_finite_outputs_that_agree_where_there_are_tokens(mask):
    removed, kept = (_randomized(FAMILIES["bert"](padding=padding)) for padding in ("remove", "keep"))
    ids = np.arange(mask.size).reshape(mask.shape) % 20
    batch = {"token_ids": ids, "segment_ids": ids % 2, "padding_mask": mask}
    batch = {name: tf.constant(x, tf.int32) for name, x in batch.items()}
    signature = [{name: tf.TensorSpec([None, None], tf.int32) for name in batch}]
    one, other = (tf.function(model, input_signature=signature)(batch) for model in (removed, kept))
    for outputs in (one, other, removed(batch), kept(batch)):
        assert all(np.isfinite(x).all() for x in outputs.values())
    real = mask == 1
    np.testing.assert_allclose(one["sequence_output"][real], other["sequence_output"][real], rtol=1e-5, atol=2e-5)
    first = real[:, 0]
    np.testing.assert_allclose(one["pooled_output"][first], other["pooled_output"][first], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("padding", ["remove", "keep"])
def test_padding_changes_nothing_for_real_tokens(family, padding):
    model = _randomized(family(padding=padding))
    expected = model(_batch(model))
    longer = {name: np.pad(x, [(0, 0), (0, 3)]) for name, x in _batch(model).items()}
    longer["token_ids"] = np.where(longer["padding_mask"] == 1, longer["token_ids"], 13)
    actual = model(longer)
    real = MASK.astype(bool)
    np.testing.assert_allclose(
        actual["sequence_output"][:, :6][real], expected["sequence_output"][real], rtol=1e-5, atol=2e-5
    )
    np.testing.assert_allclose(actual["pooled_output"], expected["pooled_output"], rtol=1e-5, atol=2e-5)


def test_segments_count_where_there_are_any():
    model = _randomized(FAMILIES["bert"]())
    one, other = model(_batch(model)), model(_batch(model, segment_ids=np.zeros_like(SEGMENTS)))
    assert np.abs(one["sequence_output"] - other["sequence_output"]).max() > 1e-2


def test_graph_answers_for_any_batch_and_length(family):
    model = _randomized(family())
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in model.input}
    graph = tf.function(model, input_signature=[signature])
    for rows, length in ((2, 6), (1, 4)):
        batch = {name: tf.constant(x[:rows, :length], tf.int32) for name, x in _batch(model).items()}
        expected, actual = model(batch), graph(batch)
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5)


def test_encoder_that_keeps_padding_compiles_with_xla():
    model = _randomized(FAMILIES["bert"](padding="keep"))
    batch = {name: tf.constant(x, tf.int32) for name, x in _batch(model).items()}
    expected, actual = model(batch), tf.function(model, jit_compile=True)(batch)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-5)


def test_gradient_reaches_every_weight(family):
    model = _randomized(family())
    with tf.GradientTape() as tape:
        outputs = model(_batch(model), training=True)
        loss = sum(tf.reduce_sum(x * tf.reshape(tf.linspace(-1.0, 1.0, tf.size(x)), x.shape)) for x in outputs.values())
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert np.any(gradient), variable.path
        assert np.isfinite(gradient).all(), variable.path


def test_trains_in_the_loop_of_keras():
    """With Keras's own optimizer and losses, and a batch of another length."""
    encoder = models.bert(
        20, num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=16, dropout=0.0, attention_dropout=0.0
    )
    scores = keras.layers.Dense(1, name="score")(encoder.output["pooled_output"])
    model = keras.Model(encoder.input, scores)
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    history = model.fit(_batch(encoder), np.array([[1.0], [-1.0]]), epochs=20, verbose=0)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    shorter = {name: x[:, :4] for name, x in _batch(encoder).items()}
    assert np.isfinite(model.evaluate(shorter, np.ones((2, 1)), verbose=0))


def test_recompute_reaches_every_block_and_is_saved_with_the_model(family):
    def blocks(model: keras.Model) -> list[bool]:
        return [layer.recompute for layer in model.layers if layer.name.startswith("block_")]

    model = family(recompute=True)
    assert all(blocks(model))
    assert blocks(keras.models.model_from_json(model.to_json())) == blocks(model)
    assert not any(blocks(family()))


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match=r"`padding` must be \"remove\" or \"keep\"\. Received: padding='ragged'"):
        FAMILIES["bert"](padding="ragged")


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="num_heads=3, width=8"):
        models.bert(20, num_layers=1, hidden_dim=8, num_heads=3, intermediate_dim=16)


@pytest.mark.parametrize("output", ["sequence_output", "pooled_output"])
def test_a_part_computes_what_its_output_needs(family, output):
    """Seen in the shapes of the feed-forward networks: tokens, whose number is open, or the two sequences."""
    model = family(activation="gelu", dropout=0.0, attention_dropout=0.0)
    part, batch = part_for(_randomized(model), output), {name: tf.constant(x) for name, x in _batch(model).items()}
    traced = tf.function(lambda batch: part(batch), autograph=False).get_concrete_function(batch)
    operations = traced.graph.get_operations()
    rows = [op.outputs[0].shape[0] for op in operations if op.type == "Erf"]
    assert rows == ([None, 2] if output == "pooled_output" else [None, None])
    assert ("Tanh" in {op.type for op in operations}) == (output == "pooled_output")
    assert part.weights == (model.weights if output == "pooled_output" else model.weights[:-2])

    def gradients(model):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(batch, training=True)[output] ** 2)
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, part.trainable_variables)]

    np.testing.assert_allclose(part(batch)[output], model(batch)[output], atol=1e-5)
    for one, other in zip(gradients(part), gradients(model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: keras.layers.GlobalAveragePooling1D()(x),
        lambda x: keras.layers.Concatenate()([keras.layers.GlobalAveragePooling1D()(x), CLSPooler()(x)]),
        lambda x: CLSPooler()(inputs=x),
        lambda x: CLSPooler()(x, first_positions=keras.ops.ones_like(x[:, :1, 0], dtype="int32"))[:, 0],
        lambda x: CLSPooler()(keras.layers.LayerNormalization()(x)),
    ],
    ids=["of Keras", "of two", "by keyword", "of another token", "behind a norm"],
)
def test_a_part_of_blocks_that_are_pooled_in_another_way_is_left_as_it_is(pool):
    x = keras.Input((None, 8), name="x")
    pooled = pool(TransformerEncoder(2, 16)(x))
    model = keras.Model({"x": x}, {"pooled_output": pooled})
    inputs = {"x": np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")}
    np.testing.assert_array_equal(
        part_for(model, "pooled_output")(inputs)["pooled_output"], model(inputs)["pooled_output"]
    )


def test_gradients_in_half_precision_are_those_of_float32():
    """Of 4,096 tokens: sums over so many are where bfloat16 is lost, if anything adds up in it."""
    rng = np.random.default_rng(0)
    shape, wanted = (32, 128), rng.normal(0.3, 1.0, (32, 128, 64)).astype("float32")
    ids, is_second = rng.integers(0, 200, shape), np.broadcast_to(np.arange(128) > 60, shape)
    batch = {"token_ids": ids, "segment_ids": is_second.astype("int32"), "padding_mask": np.ones_like(ids)}

    def gradients(policy):
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(0)
        model = models.bert(200, 1, 64, 2, 256, dropout=0.0, attention_dropout=0.0)
        weights = [variable for variable in model.trainable_variables if "pooler" not in variable.path]

        @tf.function
        def of_a_step(batch):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.cast(model(batch, training=True)["sequence_output"], tf.float32) * wanted)
            found = tape.gradient(loss, [weight.value for weight in weights])
            return {weight.path: tf.convert_to_tensor(g) for weight, g in zip(weights, found, strict=True)}

        return of_a_step({name: tf.constant(tensor, tf.int32) for name, tensor in batch.items()})

    half = gradients("mixed_bfloat16")
    for path, exact in gradients("float32").items():
        error = np.linalg.norm(half[path] - exact) / np.linalg.norm(exact)
        assert error < 0.015, f"{path}: {error}"
