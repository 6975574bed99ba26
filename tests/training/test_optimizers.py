import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_bert_lib.training import AdamW, Lamb, Model, Muon


def variables_like_bert():
    rng = np.random.default_rng(0)
    shapes = {"embeddings": (40, 8), "kernel": (8, 8), "bias": (8,), "gamma": (8,), "beta": (8,), "output_bias": (40,)}
    return [keras.Variable(rng.normal(size=s).astype("float32"), name=n) for n, s in shapes.items()]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_that_of_keras(weight_decay):
    ours, theirs = variables_like_bert(), variables_like_bert()
    arguments = {"learning_rate": 1e-2, "weight_decay": weight_decay, "epsilon": 1e-6, "global_clipnorm": 1.0}
    stock = keras.optimizers.AdamW(**arguments)
    stock.exclude_from_weight_decay(var_list=theirs[2:])
    optimizer = AdamW(**arguments)
    rng = np.random.default_rng(1)
    for _ in range(10):
        gradients = [tf.constant(rng.normal(size=v.shape).astype("float32")) for v in ours]
        optimizer.apply(gradients, ours)
        stock.apply(gradients, theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6, err_msg=a.path)


@pytest.mark.parametrize("scale", [1.0, 2.0**15])
def test_divided_gradients_give_the_updates_of_smaller_ones(scale):
    """Divisors that change from step to step, as those of clipping do, against Keras's own on what they divide."""
    ours, theirs = variables_like_bert(), variables_like_bert()
    stock = keras.optimizers.AdamW(1e-2, weight_decay=0.0, epsilon=1e-6)
    optimizer = AdamW(1e-2, weight_decay=0.0)
    optimizer.build(ours)
    rng = np.random.default_rng(1)
    for divisor in scale * np.array([1.0, 8.0, 1.0, 0.01, 30.0, 1.0, 1.0, 5.0]):
        gradients = [tf.constant(rng.normal(size=v.shape).astype("float32")) for v in ours]
        scaled = [gradient * scale for gradient in gradients]
        with optimizer.whole_step(scaled, ours, tf.constant(divisor, tf.float32), tf.constant(1e-2)) as taken:
            for gradient, variable in zip(taken, ours, strict=True):
                optimizer.update_step(gradient, variable.value, tf.constant(1e-2))
        optimizer.iterations.assign_add(1)
        stock.apply([gradient / (divisor / scale) for gradient in gradients], theirs)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=2e-6, err_msg=a.path)
        true_mean = optimizer.means[0] * optimizer.mean_factor * (1 - 0.9 ** int(optimizer.iterations))
        np.testing.assert_allclose(true_mean, stock._momentums[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divisors", [[1, 1, 1000, 1, 1, 1], [1, 1, 2**15, 2**15, 2**15]], ids=["outlier", "scale"])
def test_a_divisor_far_above_the_others_loses_no_square(divisors):
    """A row of a table that only such a step touches has no squares of other steps to hide behind."""
    ours, theirs = ([keras.Variable(np.ones((2, 8), "float32"), name="embeddings")] for _ in range(2))
    stock = keras.optimizers.AdamW(1e-2, weight_decay=0.0, epsilon=1e-9)
    optimizer = AdamW(1e-2, weight_decay=0.0, epsilon=1e-9)
    optimizer.build(ours)

    @tf.function
    def step(gradient, divisor):
        with optimizer.whole_step([gradient], ours, divisor, tf.constant(1e-2)) as [taken]:
            optimizer.update_step(taken, ours[0].value, tf.constant(1e-2))

    rng = np.random.default_rng(1)
    for divisor in map(float, divisors):
        rows = [[1.0], [float(divisor > 1)]]  # the second row has a gradient in the steps that are divided
        gradient = tf.constant((rng.uniform(0.5, 1.0, size=(2, 8)) * rows).astype("float32"))
        step(gradient, tf.constant(divisor, tf.float32))
        optimizer.iterations.assign_add(1)
        stock.apply([gradient / divisor], theirs)
        np.testing.assert_allclose(ours[0].numpy(), theirs[0].numpy(), rtol=0, atol=1e-4)
    assert abs(theirs[0][1, 0] - 1.0) > 1e-2


@pytest.mark.parametrize("optimizer", [AdamW, Lamb])
def test_variables_in_half_precision_are_refused(optimizer):
    variable = keras.Variable(np.ones(3, "float32"), dtype="bfloat16", name="gamma")
    with pytest.raises(ValueError, match=r"needs variables of float32.*Received: 'gamma' of bfloat16"):
        optimizer(0.1).build([variable])


def test_biases_and_norms_are_not_decayed():
    variables = variables_like_bert()
    before = [v.numpy() for v in variables]
    AdamW(0.1, weight_decay=0.5).apply([tf.zeros(v.shape) for v in variables], variables)
    for variable, old in zip(variables, before, strict=True):
        factor = 0.95 if variable.name in ("embeddings", "kernel") else 1.0
        np.testing.assert_allclose(variable.numpy(), factor * old, rtol=1e-6, err_msg=variable.path)


def test_patterns_match_paths_and_survive_the_keras_file(tmp_path):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="body"), keras.layers.Dense(1, name="head")]
    )
    model.compile(AdamW(0.1, weight_decay=0.5, no_weight_decay=["(^|/)head/", "bias$"]), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    before = {v.path: v.numpy() for v in model.trainable_variables}
    model.optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    changed = {v.path for v in model.trainable_variables if not np.array_equal(v.numpy(), before[v.path])}
    assert [path for path in before if path.endswith("body/kernel")] == list(changed)


def test_a_repeated_row_of_a_sparse_gradient_counts_once_with_its_sum():
    sparse, dense = keras.Variable(np.ones((3, 1), "float32")), keras.Variable(np.ones((3, 1), "float32"))
    slices = tf.IndexedSlices(tf.constant([[1.0], [-0.9], [0.5]]), tf.constant([0, 0, 1]), tf.constant([3, 1]))
    optimizers = AdamW(0.1, weight_decay=0.0), AdamW(0.1, weight_decay=0.0)
    for _ in range(3):
        optimizers[0].apply([slices], [sparse])
        optimizers[1].apply([tf.convert_to_tensor(slices)], [dense])
    np.testing.assert_array_equal(sparse.numpy(), dense.numpy())
    np.testing.assert_allclose(sparse.numpy(), [[0.7], [0.7], [1.0]], atol=1e-4)


def test_default_patterns_spare_biases_and_norms_only():
    patterns = AdamW().no_weight_decay
    spared = [
        "block_0/attention/qkv/bias",
        "embeddings/norm/gamma",
        "block_1/feed_forward_norm/beta",
        "masked_lm/output_bias",
        "rms_normalization/scale",
    ]
    decayed = ["embeddings/token/embeddings", "block_0/attention/qkv/kernel", "pooler/dense/kernel"]
    assert all(any(re.search(p, path) for p in patterns) for path in spared)
    assert not any(re.search(p, path) for p in patterns for path in decayed)


BOTH = pytest.mark.parametrize("optimizer", [AdamW, Lamb])


@BOTH
def test_a_multiplier_is_another_learning_rate_for_decay_and_step_alike(optimizer):
    """Variables whose pattern comes first at 3 times the rate are those of an optimizer with 3 times the rate."""
    factors = {"^embeddings$": 3.0, "bias": 0.5, "embeddings|_bias": 100.0}
    runs = {}
    for rate in (1e-2, 3e-2, 5e-3):
        runs[rate] = variables_like_bert()
        apply_random(optimizer(rate, weight_decay=0.5), runs[rate])
    ours = variables_like_bert()
    apply_random(optimizer(1e-2, weight_decay=0.5, learning_rate_multipliers=factors), ours)
    rates = {"embeddings": 3e-2, "bias": 5e-3, "output_bias": 5e-3}
    for index, variable in enumerate(ours):
        expected = runs[rates.get(variable.name, 1e-2)][index]
        np.testing.assert_allclose(variable.numpy(), expected.numpy(), rtol=0, atol=1e-6, err_msg=variable.path)


def apply_random(optimizer, variables, steps=5):
    rng = np.random.default_rng(1)
    for _ in range(steps):
        optimizer.apply([tf.constant(rng.normal(size=v.shape).astype("float32")) for v in variables], variables)


@BOTH
def test_settings_survive_serialization(optimizer):
    ours = optimizer(
        0.25,
        0.02,
        beta_2=0.98,
        no_weight_decay=["^head/"],
        learning_rate_multipliers={"b": 0.5, "a": 2.0},
        clipnorm=0.5,
    )
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(ours))
    assert type(restored) is optimizer
    assert restored.get_config() == ours.get_config()
    assert list(restored.learning_rate_multipliers) == ["b", "a"]  # the first that matches counts


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"no_weight_decay": "bias$"},
            r"`no_weight_decay` must hold regular expressions.*no_weight_decay='bias\$' \(one",
        ),
        ({"no_weight_decay": ["("]}, r"Received: no_weight_decay=\['\('\] \(missing \)"),
        ({"no_weight_decay": [1]}, r"Received: no_weight_decay=\[1\]"),
        ({"learning_rate_multipliers": {"a": 0.0}}, "factors greater than 0; .*`trainable = False`.*{'a': 0.0}"),
        ({"learning_rate_multipliers": {"a": float("nan")}}, "Received: {'a': nan}"),
        ({"learning_rate_multipliers": {"*": 1.0}}, "`learning_rate_multipliers` must hold regular expressions"),
        ({"learning_rate_multipliers": [("a", 1.0)]}, "must be a dict from regular expressions .*'a', 1.0"),
    ],
)
def test_patterns_that_are_none_are_refused(optimizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**arguments)


def test_an_error_inside_of_a_step_leaves_no_divisor_behind():
    variables = variables_like_bert()
    optimizer = AdamW(0.1)
    optimizer.build(variables)
    with pytest.raises(KeyError), optimizer.whole_step([tf.zeros([])], [], 8.0, 0.1):
        optimizer.update_step(tf.zeros([]), tf.Variable(0.0), 0.1)
    assert optimizer._scalars_of_step is None


@pytest.mark.parametrize(
    "make", [AdamW, lambda *a, **k: Muon(*a, matrices={"^kernel$": 1}, **k)], ids=["AdamW", "Muon"]
)
def test_a_small_decay_waits_until_float32_can_take_it(make):
    """Many steps of a fine-tuning's decay leave what exact arithmetic does; a decay in each step is rounded away."""
    variables = variables_like_bert()
    before = [v.numpy().astype("float64") for v in variables]
    optimizer = make(0.0, weight_decay=0.01, learning_rate_multipliers={"^embeddings$": 0.1})
    optimizer.build(variables)
    steps = 2_000

    @tf.function
    def steps_that_moved():
        moved, last = 0, tf.identity(variables[1].value)
        for _ in tf.range(steps):
            step(optimizer, variables, tf.constant(5e-6), 1.0, gradient=0.0)
            now = tf.identity(variables[1].value)
            moved, last = moved + tf.cast(tf.reduce_any(now != last), tf.int32), now
        return moved

    moved = int(steps_that_moved())
    shares = {"embeddings": 0.1, "kernel": 1.0}
    for variable, old in zip(variables, before, strict=True):
        exact = old * (1 - 0.01 * 5e-6 * shares.get(variable.name, 0.0)) ** steps
        np.testing.assert_allclose(variable.numpy(), exact, rtol=5e-6, err_msg=variable.path)
    assert steps * 0.01 * 5e-6 / 2**-17 < moved <= steps * 0.01 * 5e-6 / 2**-18
    in_each_step = np.float32(before[1])
    for _ in range(steps):
        in_each_step -= in_each_step * np.float32(0.01 * 5e-6)
    assert abs(in_each_step / before[1] - 1 + 1e-4).max() > 4e-5


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_a_decay_that_float32_can_take_is_made_in_each_step(factor):
    variables = variables_like_bert()
    before = variables[1].numpy()
    optimizer = AdamW(0.0, weight_decay=0.01, learning_rate_multipliers={"^kernel$": factor})
    optimizer.build(variables)
    step(optimizer, variables, 2.0**-18 / 0.0099 / factor, 1.0, gradient=0.0)
    np.testing.assert_allclose(variables[1].numpy(), before * (1 - 2.0**-18 / 0.99), rtol=2e-7)
    assert optimizer.rates_due.numpy().tolist() == ([0.0] if factor == 1.0 else [pytest.approx(3.9e-5, rel=0.02), 0.0])


def dense_model(base, clip=None):
    keras.utils.set_random_seed(1)
    x = keras.Input((4,))
    model = base(x, keras.layers.Dense(3)(x))
    model.compile(AdamW(0.02, weight_decay=0.1, global_clipnorm=clip), "mse")
    return model


@pytest.mark.parametrize("order", [(Model, keras.Model), (keras.Model, Model), (Model, keras.Model, Model)])
def test_training_goes_on_in_the_other_loop(order, scope, tmp_path):
    """Our loop clips, by divided gradients. Keras's does not: it would clip the share of each replica."""
    with scope:
        strategy = tf.distribute.get_strategy()
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(48, 4)).astype("float32"), 5 * rng.normal(size=(48, 3)).astype("float32")
    stock = dense_model(keras.Model)
    for turn, base in enumerate(order):
        clip = 0.05 if base is Model else None
        stock.optimizer.global_clipnorm = clip
        stock.make_train_function(force=True)
        stock.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        with strategy.scope():
            model = dense_model(base, clip)
            checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
            if turn:
                checkpoint.read(str(tmp_path / "state"))
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        checkpoint.write(str(tmp_path / "state"))
    for ours, theirs in zip(model.weights, stock.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1e-5)


def test_iterations_that_were_set_back_start_the_means_anew():
    ours, theirs = variables_like_bert(), variables_like_bert()
    optimizer, fresh = AdamW(1e-2), AdamW(1e-2)
    optimizer.build(ours)
    fresh.build(theirs)
    optimizer.iterations.assign(50)
    step(optimizer, ours, 0.0, 4.0)
    optimizer.iterations.assign(0)
    for divisor in (0.5, 3.0):
        step(optimizer, ours, 1e-2, divisor)
        step(fresh, theirs, 1e-2, divisor)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-6)


def step(optimizer, variables, rate, divisor, gradient=1.0):
    gradients = [divisor * gradient * tf.ones(v.shape) for v in variables]
    with optimizer.whole_step(gradients, variables, divisor, rate) as gradients:
        for gradient, variable in zip(gradients, variables, strict=True):
            optimizer.update_step(gradient, variable.value, rate)
    optimizer.iterations.assign_add(1)
