"""AdamW passes over the rows of a large embedding table that have moved, and over no others."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import AdamW, Model, Muon, adamw_optimizer

ROWS = 40
ALL = set(range(ROWS))
FEW = np.random.default_rng(0).choice([0, 3, 3, 5, 7, 11], (24, 3)).astype("int32")  # 5 rows, which repeat in a batch
SPREAD = np.arange(72).reshape(24, 3).astype("int32") % 30  # a quarter of the rows is moved by the second step


@pytest.fixture(autouse=True)
def every_table_is_large(monkeypatch):
    monkeypatch.setattr(adamw_optimizer, "_LARGE_TABLE", 0)


def build(base=Model, optimizer=AdamW, **options):
    """Embeddings and two classes; `options` are of the optimizer and of `compile`."""
    keras.utils.set_random_seed(1)
    of_compile = {name: options.pop(name) for name in ("accumulation_steps", "jit_compile") if name in options}
    token_ids = keras.Input((3,), dtype="int32", name="token_ids")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(ROWS, 4, name="token")(token_ids))
    model = base(token_ids, keras.layers.Dense(2, name="scores")(x))
    model.compile(
        optimizer(0.05, weight_decay=0.1, **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **of_compile,
    )
    return model


def fit(model, tokens):
    model.fit(tokens, tokens[:, 0] % 2, batch_size=6, epochs=2, shuffle=False, verbose=0)
    return model


def as_dense(monkeypatch, make):
    """The same with the kernel's pass over the whole table."""
    with monkeypatch.context() as patched:
        patched.setattr(adamw_optimizer, "_LARGE_TABLE", float("inf"))
        return make()


def moved_rows(model):
    [moved] = [rows for rows in model.optimizer.moved_rows if rows is not None]
    return set(np.flatnonzero(moved.numpy()).tolist())


def assert_equal(model, expected):
    state = {v.path: v.numpy() for v in model.variables + model.optimizer.variables}
    for variable in expected.variables + expected.optimizer.variables:
        np.testing.assert_allclose(state[variable.path], variable.numpy(), rtol=1e-6, atol=1e-7, err_msg=variable.path)


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize(("tokens", "moved"), [(FEW, {0, 3, 5, 7, 11}), (SPREAD, ALL)], ids=["few", "many"])
def test_the_step_is_that_of_the_kernel(tokens, moved, clip, monkeypatch):
    """Means that wait for a token to come back included."""
    expected = as_dense(monkeypatch, lambda: fit(build(global_clipnorm=clip), tokens))
    model = fit(build(global_clipnorm=clip), tokens)
    assert_equal(model, expected)
    assert moved_rows(model) == moved


@pytest.mark.parametrize(
    "options",
    [{"accumulation_steps": 2}, {"jit_compile": True}, {"clipnorm": 0.01}],
    ids=lambda options: next(iter(options)),
)
def test_a_dense_gradient_moves_all_rows(options, monkeypatch):
    expected = as_dense(monkeypatch, lambda: fit(build(**options), FEW))
    model = fit(build(**options), FEW)
    assert_equal(model, expected)
    assert moved_rows(model) == ALL


def test_replicas_move_all_rows(mirrored, monkeypatch):
    def train():
        with mirrored.scope():
            model = build()
        return fit(model, FEW)

    expected = as_dense(monkeypatch, train)
    model = train()
    assert_equal(model, expected)
    assert moved_rows(model) == ALL


def test_another_device_than_a_cpu_moves_all_rows(monkeypatch):
    """It would have to tell the host how many rows there are."""
    monkeypatch.setattr(adamw_optimizer, "computes_on_cpu", lambda: False)
    assert moved_rows(fit(build(), FEW)) == ALL


def test_a_training_goes_on_in_the_loop_of_keras_and_comes_back(monkeypatch, tmp_path):
    def train():
        for turn, base in enumerate((Model, keras.Model, Model)):
            model = build(base)
            checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
            if turn:
                checkpoint.read(str(tmp_path / "state")).assert_existing_objects_matched()
            fit(model, FEW + 20 if base is keras.Model else FEW)
            checkpoint.write(str(tmp_path / "state"))
        return model

    assert_equal(train(), as_dense(monkeypatch, train))


def test_muon_moves_the_table_likewise_unless_it_is_one_of_its_matrices(monkeypatch):
    options = {"optimizer": Muon, "matrices": {"scores/kernel": 1}}
    expected = as_dense(monkeypatch, lambda: fit(build(**options), FEW))
    model = fit(build(**options), FEW)
    assert_equal(model, expected)
    assert moved_rows(model) == {0, 3, 5, 7, 11}
    model = fit(build(optimizer=Muon, matrices={"embeddings": 1}), FEW)
    assert model.optimizer.moved_rows == [None, None, None]


def test_a_step_that_is_left_out_moves_no_row():
    model = build()
    model.compile(model.optimizer, model.loss, non_finite="skip")
    model.get_layer("scores").kernel.assign(np.full((4, 2), np.nan))
    fit(model, FEW)
    assert moved_rows(model) == set()


def test_a_gradient_of_a_step_far_longer_than_usual_is_shortened(monkeypatch):
    """The gradients of rows are multiplied by what the kernel is not told of the divisor."""

    def train():
        model = build(global_clipnorm=1e-4)
        fit(model, FEW)
        model.optimizer.global_clipnorm = 1e-7
        model.make_train_function(force=True)
        return fit(model, FEW)

    assert_equal(train(), as_dense(monkeypatch, train))


def test_a_table_that_was_moved_is_read_without_a_copy():
    """TensorFlow copies a variable at each read once rows were scattered to it, unless that is taken back."""
    model = fit(build(), FEW)
    tables = [model.get_layer("token").embeddings, model.optimizer.means[0], model.optimizer.square_means[0]]
    for table in tables:
        reads = [table.value.read_value() for _ in range(2)]
        addresses = {np.asarray(memoryview(read)).ctypes.data for read in reads}
        assert len(addresses) == 1, table.path


def test_small_tables_and_other_variables_are_moved_whole(monkeypatch):
    monkeypatch.undo()
    model = fit(build(), FEW)
    assert model.optimizer.moved_rows == [None, None, None]
