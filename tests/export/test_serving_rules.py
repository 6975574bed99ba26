import pytest
import tensorflow as tf

from keras_bert_lib.export.serving_rules import unservable


def written(function, folder, dtype=tf.float32):
    """SavedModel of a function of one vector."""
    module = tf.Module()
    traced = tf.function(function, input_signature=[tf.TensorSpec([None], dtype, name="x")], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": traced.get_concrete_function()})
    return folder


def pinned(x):
    with tf.device("GPU:0"):
        return {"y": x + 1.0}


def pinned_to_the_second_cpu(x):
    with tf.device("CPU:1"):
        return {"y": x + 1.0}


def on_the_cpu(x):
    with tf.device("CPU:0"):
        return {"y": x + 1.0}


@tf.function(jit_compile=True)
def compiled(x):
    return x + 1.0


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (pinned, "op 'AddV2' (add) is pinned to '/device:GPU:0'"),
        (pinned_to_the_second_cpu, "op 'AddV2' (add) is pinned to '/device:CPU:1'"),
        (lambda x: {"y": compiled(x)}, "must be compiled by XLA"),
        (lambda x: {"y": tf.py_function(lambda v: v, [x], tf.float32)}, "op 'EagerPyFunc' calls back into Python"),
        (lambda x: {"y": tf.numpy_function(lambda v: v, [x], tf.float32)}, "op 'PyFunc' calls back into Python"),
    ],
)
def test_what_a_server_cannot_run_is_named(tmp_path, function, reason):
    assert any(reason in found for found in unservable(written(function, tmp_path / "1")))


def test_control_flow_tables_and_cpu_are_servable(tmp_path):
    def function(x):
        return {
            "y": tf.while_loop(lambda v: tf.reduce_sum(v) < 3.0, lambda v: (v + 1.0,), (x,))[0] + on_the_cpu(x)["y"]
        }

    assert unservable(written(function, tmp_path / "1")) == []


def test_text_ops_of_the_server_are_servable_and_its_newcomers_are_not(tmp_path):
    import tensorflow_text

    tokenizer = tensorflow_text.FastBertTokenizer(["[UNK]", "a", "film"], token_out_type=tf.int32)
    trimmer = tensorflow_text.RoundRobinTrimmer(3)
    assert unservable(written(lambda x: {"y": tokenizer.tokenize(x).to_tensor()}, tmp_path / "1", tf.string)) == []
    found = unservable(
        written(lambda x: {"y": trimmer.trim([tokenizer.tokenize(x)])[0].to_tensor()}, tmp_path / "2", tf.string)
    )
    assert [reason.split(";")[0] for reason in found] == ["op 'TFText>RoundRobinTrim' is not linked into the server"]
