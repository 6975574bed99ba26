"""AdamW passes over the rows of a large embedding table that have moved, and over no others."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import AdamW, Model, Muon, adamw_optimizer

ROWS = 40
MOVED, ALL = {0, 3, 5, 7, 11}, set(range(ROWS))
# 24 texts of three tokens, in four batches. Each of the rows has a batch without its token behind one with it.
FEW = np.sort(np.random.default_rng(0).choice(sorted(MOVED), 72)).reshape(24, 3).astype("int32")
# Nine rows in the first batch, nine more in the second: more than a quarter of the table.
MORE = np.arange(72).reshape(24, 3).astype("int32") // 2


@pytest.fixture(autouse=True)
def every_table_is_large(monkeypatch):
    monkeypatch.setattr(adamw_optimizer, "_LARGE_TABLE", 0)


def build(base=Model, optimizer=AdamW, lookups=1, **options):
    """Embeddings and two classes; `options` are of the optimizer and of `compile`."""
    keras.utils.set_random_seed(1)
    names = {"accumulation_steps", "jit_compile", "run_eagerly", "steps_per_execution"}
    of_compile = {name: options.pop(name) for name in names & options.keys()}
    token_ids = keras.Input((3,), dtype="int32", name="token_ids")
    table = keras.layers.Embedding(ROWS, 4, name="token")
    x = keras.layers.add([table(token_ids) for _ in range(lookups)]) if lookups > 1 else table(token_ids)
    model = base(token_ids, keras.layers.Dense(2, name="scores")(keras.layers.GlobalAveragePooling1D()(x)))
    model.compile(
        optimizer(0.05, **{"weight_decay": 0.1, **options}),
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
        value = variable.numpy()
        np.testing.assert_allclose(
            state[variable.path], value, rtol=1e-5, atol=1e-6 * np.abs(value).max(initial=0), err_msg=variable.path
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_clipnorm": 0.01},
        {"run_eagerly": True},
        {"steps_per_execution": 2},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
        {"lookups": 2},
        {"optimizer": Muon, "matrices": {"scores/kernel": 1}},
    ],
    ids=str,
)
def test_the_step_is_that_of_the_kernel(options, monkeypatch):
    model, expected = build(**options), build(**options)
    for tokens, moved in ((FEW, MOVED), (MORE, ALL)):
        fit(model, tokens)
        as_dense(monkeypatch, lambda tokens=tokens: fit(expected, tokens))
        assert_equal(model, expected)
        assert moved_rows(model) == moved


def test_the_tokens_of_these_tests_leave_out_rows_and_become_more():
    batches = [set(FEW[start : start + 6].ravel().tolist()) for start in range(0, 24, 6)]
    assert set.union(*batches) == MOVED
    assert not set.intersection(*batches)
    assert len(set(MORE[:6].ravel())) <= ROWS / 4 < len(set(MORE[:12].ravel()))


def test_a_row_without_a_token_stays_as_it_is():
    model = build(weight_decay=0.0)
    before = model.get_layer("token").embeddings.numpy()
    after = fit(model, FEW).get_layer("token").embeddings.numpy()
    assert set(np.flatnonzero((before != after).any(axis=1)).tolist()) == MOVED


@pytest.mark.parametrize("options", [{"accumulation_steps": 2}, {"jit_compile": True}, {"clipnorm": 0.01}], ids=str)
def test_a_dense_gradient_moves_all_rows(options, monkeypatch):
    model, expected = fit(build(**options), FEW), as_dense(monkeypatch, lambda: fit(build(**options), FEW))
    assert_equal(model, expected)
    assert moved_rows(model) == ALL


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_move_all_rows_unless_it_is_one_alone(replicas, mirrored, monkeypatch):
    strategy = mirrored if replicas == 2 else tf.distribute.MirroredStrategy(["CPU:0"])

    def train():
        with strategy.scope():
            model = build()
        return fit(model, FEW)

    model, expected = train(), as_dense(monkeypatch, train)
    assert_equal(model, expected)
    assert moved_rows(model) == (ALL if replicas == 2 else MOVED)


def test_another_device_than_a_cpu_moves_all_rows(monkeypatch):
    """It would have to tell the host how many rows there are."""
    monkeypatch.setattr(adamw_optimizer, "computes_on_cpu", lambda: False)
    assert moved_rows(fit(build(), FEW)) == ALL


def test_an_update_step_that_somebody_wrote_gets_dense_gradients():
    class Halved(AdamW):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient * 0.5, variable, learning_rate)

    assert moved_rows(fit(build(optimizer=Halved), FEW)) == ALL


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


def test_a_training_goes_on_from_a_state_that_does_not_know_which_rows_have_moved(monkeypatch):
    """As that of a checkpoint that was written before there were `moved_rows`."""

    def train():
        model = fit(build(), FEW)
        for rows in model.optimizer.moved_rows:
            if rows is not None:
                rows.assign(np.zeros(rows.shape, bool))
        return fit(model, FEW + 20)

    model = train()
    assert_equal(model, as_dense(monkeypatch, train))
    assert moved_rows(model) == ALL


def test_a_matrix_of_muon_moves_whole():
    model = fit(build(optimizer=Muon, matrices={"embeddings": 1}), FEW)
    assert model.optimizer.moved_rows == [None, None, None]


def test_a_step_that_is_left_out_moves_no_row():
    model = build()
    model.compile(model.optimizer, model.loss, non_finite="skip")
    model.get_layer("scores").kernel.assign(np.full((4, 2), np.nan))
    fit(model, FEW)
    assert moved_rows(model) == set()


def test_rows_of_a_gradient_far_longer_than_usual_are_shortened(monkeypatch):
    """By what the kernel is not told of the divisor."""

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


def test_small_tables_and_other_variables_move_whole(monkeypatch):
    monkeypatch.undo()
    assert fit(build(), FEW).optimizer.moved_rows == [None, None, None]
