import keras
import numpy as np
import pytest
import tensorflow as tf

from .layer_cases import BATCH, CASES, LayerCase, built, by_name, call, random_states, vectors


def _row(case: LayerCase, row: int) -> dict:
    return case.arguments({name: x[[row]] for name, x in case.inputs.items()})


def _per_replica(mirrored: tf.distribute.Strategy, case: LayerCase, rows: tuple[int, int]) -> dict:
    """The arguments of replica i: row `rows[i]` of the batch of the case."""
    by_replica = [_row(case, row) for row in rows]
    return tf.nest.map_structure(
        lambda *values: mirrored.experimental_distribute_values_from_function(
            lambda context: values[context.replica_id_in_sync_group]
        ),
        *by_replica,
    )


def _loss(output, replica: int | tf.Tensor) -> tf.Tensor:
    """Another weight for every output of every replica, so that no gradient vanishes by symmetry."""
    x = vectors(output)
    number = tf.reshape(tf.range(tf.size(x)), tf.shape(x)) % 7 + 2 * tf.cast(replica, tf.int32)
    return tf.reduce_sum(x * tf.cos(tf.cast(number, tf.float32)))


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_step_on_two_replicas_is_the_step_on_their_sum(case, mirrored):
    with mirrored.scope():
        layer = built(case)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(case.uses(layer))
    initial = [v.numpy() for v in case.uses(layer)]

    def on_one_replica(arguments):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        with tf.GradientTape() as tape:
            output = call(layer, arguments)
            loss = _loss(output, replica)
        if case.uses(layer):
            optimizer.apply(tape.gradient(loss, [v.value for v in case.uses(layer)]))
        return vectors(output)

    step = tf.function(lambda arguments: mirrored.run(on_one_replica, args=(arguments,)))
    outputs = mirrored.experimental_local_results(step(_per_replica(mirrored, case, (0, 1))))

    alone = built(case)
    with tf.GradientTape() as tape:
        expected_outputs = [vectors(call(alone, _row(case, row))) for row in range(BATCH)]
        loss = tf.add_n([_loss(output, replica) for replica, output in enumerate(expected_outputs)])
    for output, expected in zip(outputs, expected_outputs, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    gradients = tape.gradient(loss, [v.value for v in case.uses(alone)])
    for variable, start, gradient in zip(case.uses(layer), initial, gradients, strict=True):
        first, second = mirrored.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, start - 0.1 * tf.convert_to_tensor(gradient), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.drops], ids=by_name)
def test_replicas_drop_different_elements_and_keep_one_random_state(case, mirrored):
    with mirrored.scope():
        layer = built(case)

    @tf.function
    def forward(arguments, training):
        return mirrored.run(lambda arguments: call(layer, arguments, training=training), args=(arguments,))

    same = _per_replica(mirrored, case, (1, 1))
    outputs = [x for _ in range(2) for x in mirrored.experimental_local_results(forward(same, training=True))]
    for i, output in enumerate(outputs):
        assert all(np.any(output != other) for other in outputs[:i])
    np.testing.assert_array_equal(*mirrored.experimental_local_results(forward(same, training=False)))
    for state in random_states(layer):
        np.testing.assert_array_equal(*mirrored.experimental_local_results(state.value))
