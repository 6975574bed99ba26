"""Layers are just Keras layers: an encoder that no paper has, trained and exported.

Token vectors are 64 wide, one shared pre-norm block of width 128 is applied four times, and the answer reads both the
mean of all tokens and the first one.

Command:  python examples/custom_architecture.py
Time:     about a minute on two cores
Result:   accuracy on held-out sums of small numbers well above the 50 % of guessing, then two answers of the export
"""

import pathlib
import random
import tempfile

import keras
import tensorflow as tf
import tensorflow_text  # noqa: F401  for the op in the export

import keras_bert_lib as kbl

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

MAX_LENGTH = 32  # tokens


def sums(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts such as "six and seven", labelled by whether the two make more than nine."""
    draw = random.Random(seed)
    pairs = [(draw.randrange(10), draw.randrange(10)) for _ in range(count)]
    return [f"{WORDS[a]} and {WORDS[b]}" for a, b in pairs], ["large" if a + b > 9 else "small" for a, b in pairs]


def build_encoder(vocabulary_size: int) -> keras.Model:
    """Keeps the encoder contract, and therefore fits every task."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
    x = kbl.layers.TransformerEmbeddings(
        vocabulary_size, embedding_dim=64, hidden_dim=128, num_segments=0, max_sequence_length=MAX_LENGTH, dropout=0.0
    )(token_ids)
    shared = kbl.layers.TransformerEncoder(
        num_heads=4, intermediate_dim=256, dropout=0.0, attention_dropout=0.0, normalize_first=True, name="shared"
    )
    for _ in range(4):
        x = shared(x, padding_mask=padding_mask)
    x = kbl.layers.LayerNorm()(x)
    mean = kbl.layers.MeanPooler()(x, padding_mask=padding_mask)
    pooled = keras.layers.Concatenate()([mean, kbl.layers.CLSPooler()(x)])
    return keras.Model(
        {"token_ids": token_ids, "padding_mask": padding_mask}, {"sequence_output": x, "pooled_output": pooled}
    )


def main(examples: int = 4_000, epochs: int = 6, export_to: str | None = None) -> float:
    keras.utils.set_random_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "and", *WORDS]
    tokenizer = kbl.preprocessing.WordPieceTokenizer(vocabulary)
    # Longer texts are cut to the positions that the encoder has: a server is not asked how long a text may be.
    preprocessor = kbl.preprocessing.TextPreprocessor(tokenizer, max_sequence_length=MAX_LENGTH)
    classifier = kbl.tasks.TextClassifier(build_encoder(len(vocabulary)), preprocessor, labels=["small", "large"])
    steps = epochs * -(-examples // 64)
    classifier.compile(optimizer=kbl.training.adamw(1e-3, warmup_steps=steps // 10, total_steps=steps))
    monitor = kbl.training.Monitor()  # shows tokens per second; csv="run.csv", plot="run.png" would keep the curves
    classifier.fit(*sums(examples, seed=1), batch_size=64, epochs=epochs, callbacks=[monitor])
    accuracy = classifier.evaluate(*sums(500, seed=2), verbose=0, return_dict=True)["accuracy"]
    print(f"Held-out accuracy: {accuracy:.1%}")

    with tempfile.TemporaryDirectory() as folder:
        version = kbl.export.saved_model(classifier, pathlib.Path(export_to or folder) / "1")
        ask = tf.saved_model.load(str(version)).signatures["serving_default"]
        for text in ("six and nine", "two and one"):
            print(text, "->", ask(text=tf.constant([text]))["label"].numpy()[0].decode())
    return accuracy


if __name__ == "__main__":
    main()
