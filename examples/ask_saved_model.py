"""Ask an exported classifier. Neither Keras nor keras_bert_lib is used: what TF Serving has is enough.

Command:  python examples/ask_saved_model.py saved_models/reviews/1 "A gem of a film." "Two hours I want back."
Time:     a few seconds, for TensorFlow to start
Result:   a table with the label and the probability of each text
"""

import sys

import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the op that cuts words into pieces
from rich.console import Console
from rich.table import Table


def main(version: str, *texts: str) -> None:
    answer = tf.saved_model.load(version).signatures["serving_default"](text=tf.constant(texts))
    table = Table("text", "label", "probability", title=f"Answers of {version}")
    for text, label, probabilities in zip(texts, answer["label"], answer["probabilities"], strict=True):
        table.add_row(text, label.numpy().decode(), f"{max(probabilities.numpy()):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
