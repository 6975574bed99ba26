"""SavedModels that load in a blink and whose answers a reader can compute in the head."""

import tensorflow as tf


class Small(tf.Module):
    """The length of each text times `scale`, in every signature that a client can ask for."""

    def __init__(self, scale):
        super().__init__()
        self.scale = tf.Variable(scale, dtype=tf.float32)
        self.table = tf.Variable([[0.1, 1.0], [0.2, 2.0], [0.3, 3.0]])

    def lengths(self, text):
        return tf.cast(tf.strings.length(text), tf.float32) * self.scale

    def serving_default(self, text):
        score = tf.stack([self.lengths(text), tf.cast(tf.strings.length(text), tf.float32) / 3.0], axis=1)
        return {"score": score, "label": tf.strings.join(["<", text, ">"])}

    def token_ids(self, token_ids, padding_mask):
        rows = tf.gather(self.table, token_ids) * tf.cast(padding_mask, tf.float32)[..., None]
        return {"pooled": tf.reduce_sum(rows, axis=1) * self.scale}

    def tokenize(self, text):
        return {"token_ids": tf.strings.unicode_decode(text, "UTF-8").to_tensor(-1)}

    def numbers(self, float32, float64, int64, uint8, flag):
        return {"float32": float32, "float64": float64, "int64": int64, "uint8": uint8, "flag": flag}

    def raw(self, data_bytes):
        return {"same_bytes": data_bytes}

    def half(self, text):
        return {"half": tf.cast(self.lengths(text), tf.bfloat16)}

    def fewer(self, numbers):
        return {"positive": numbers[numbers > 0.0]}

    def scalar(self, x):
        return {"y": x * 2.0}

    def classify(self, inputs):
        texts = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})["text"]
        lengths = self.lengths(texts)
        return {"classes": tf.stack([texts, tf.strings.upper(texts)], 1), "scores": tf.stack([lengths, -lengths], 1)}

    def regress(self, inputs):
        texts = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})["text"]
        return {"outputs": self.lengths(texts)}


SPECS = {
    "serving_default": {"text": ([None], tf.string)},
    "token_ids": {"token_ids": ([None, None], tf.int32), "padding_mask": ([None, None], tf.int32)},
    "tokenize": {"text": ([None], tf.string)},
    "numbers": {
        "float32": ([None, 2], tf.float32),
        "float64": ([None], tf.float64),
        "int64": ([None], tf.int64),
        "uint8": ([None], tf.uint8),
        "flag": ([None], tf.bool),
    },
    "raw": {"data_bytes": ([None], tf.string)},
    "half": {"text": ([None], tf.string)},
    "fewer": {"numbers": ([None], tf.float32)},
    "scalar": {"x": ([], tf.float32)},
    "classify": {"inputs": ([None], tf.string)},
    "regress": {"inputs": ([None], tf.string)},
}


def write(directory, scale=1.0, signatures=tuple(SPECS)):
    """Version folder of a `Small`."""
    module = Small(scale)
    traced = {}
    for name in signatures:
        specs = [tf.TensorSpec(shape, dtype, name=key) for key, (shape, dtype) in SPECS[name].items()]
        traced[name] = tf.function(getattr(module, name), input_signature=specs, autograph=False)
    functions = {name: function.get_concrete_function() for name, function in traced.items()}
    tf.saved_model.save(module, str(directory), signatures=functions)
    return directory


def write_slow(directory, seconds):
    """Version folder of a model that answers after a while, and says how many rows each run had."""
    module = tf.Module()

    def run(x):
        last = tf.while_loop(
            lambda start, y: tf.timestamp() - start < seconds,
            lambda start, y: (start, tf.linalg.matmul(y, y) * 0.0),
            (tf.timestamp(), tf.zeros([32, 32])),
        )[1]
        rows = tf.fill(tf.shape(x), tf.cast(tf.shape(x)[0], tf.float32))
        return {"x": x + last[0, 0], "rows": rows}

    traced = tf.function(run, input_signature=[tf.TensorSpec([None], tf.float32, name="x")], autograph=False)
    tf.saved_model.save(module, str(directory), signatures={"serving_default": traced.get_concrete_function()})
    return directory
