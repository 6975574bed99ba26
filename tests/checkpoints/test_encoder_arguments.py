import keras
import pytest

from keras_bert_lib import layers, models
from keras_bert_lib.checkpoints.encoder_arguments import encoder_arguments

BERT = {
    "vocabulary_size": 20,
    "num_layers": 3,
    "hidden_dim": 8,
    "num_heads": 2,
    "intermediate_dim": 24,
    "max_sequence_length": 16,
    "num_segments": 3,
    "dropout": 0.2,
    "attention_dropout": 0.3,
    "activation": "gelu_approximate",
    "layer_norm_epsilon": 1e-5,
}
ALBERT = {**BERT, "num_layers": 4, "embedding_dim": 6, "num_groups": 2}


@pytest.mark.parametrize(("family", "arguments"), [("bert", BERT), ("albert", ALBERT)])
@pytest.mark.parametrize("options", [{}, {"padding": "keep", "recompute": True, "name": "mine"}])
def test_arguments_of_a_model_are_those_it_was_built_with(family, arguments, options):
    encoder = getattr(models, family)(**arguments, **options)
    assert encoder_arguments(encoder) == (family, arguments)
    again = encoder.from_config(encoder.get_config())
    assert encoder_arguments(again) == (family, arguments)


def test_calls_from_outside_are_not_counted():
    encoder = models.albert(**ALBERT)
    encoder.get_layer("block_0")(keras.Input((None, 8)))
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in encoder.input}
    keras.Model(inputs, encoder(inputs))
    assert encoder_arguments(encoder)[1]["num_layers"] == 4


def test_an_albert_that_is_a_bert_is_called_one():
    """With wide tables and as many groups as layers nothing of ALBERT is left."""
    encoder = models.albert(**ALBERT | {"embedding_dim": 8, "num_groups": 4})
    assert encoder_arguments(encoder) == ("bert", BERT | {"num_layers": 4})


def test_shared_blocks_without_a_projection_fit_no_family():
    encoder = models.albert(**ALBERT | {"embedding_dim": 8})
    with pytest.raises(ValueError, match=r"shares 2 blocks among 4 layers.*Received: embedding_dim=8, hidden_dim=8"):
        encoder_arguments(encoder)


def assembled(order=(0, 1), pooler=None, block_options=({}, {}), **options):
    """An encoder by hand, with its two blocks applied in `order`."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    x = layers.TransformerEmbeddings(20, 8, name="embeddings")(token_ids)
    blocks = [
        layers.TransformerEncoder(2, 24, **options, **own, name=f"block_{i}") for i, own in enumerate(block_options)
    ]
    for i in order:
        x = blocks[i](x)
    return keras.Model(token_ids, (pooler or layers.CLSPooler(name="pooler"))(x))


def test_a_model_by_hand_is_read_like_any_other():
    family, arguments = encoder_arguments(assembled())
    assert (family, arguments["num_layers"], arguments["max_sequence_length"]) == ("bert", 2, 512)


@pytest.mark.parametrize("order", [(1, 0), (0, 1, 0), (0, 1, 0, 1), (0, 1, 1)])
def test_blocks_in_another_order_are_refused(order):
    message = r"one behind the other .* Received: calls \{'block_0': \d, 'block_1': \d\}, on the outputs of \['"
    with pytest.raises(ValueError, match=message):
        encoder_arguments(assembled(order))


def test_blocks_that_differ_are_refused():
    encoder = assembled(block_options=({}, {"activation": "relu"}))
    with pytest.raises(ValueError, match=r"same `activation`.* activation='gelu' and, in 'block_1', activation='relu'"):
        encoder_arguments(encoder)


def test_another_rate_behind_the_embeddings_is_refused():
    with pytest.raises(ValueError, match=r"same `dropout`.* dropout=0\.1 and, in 'block_0', dropout=0\.5"):
        encoder_arguments(assembled(dropout=0.5))


def subclassed():
    class Encoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.embeddings = layers.TransformerEmbeddings(20, 8, name="embeddings")
            self.block = layers.TransformerEncoder(2, 24, name="block_0")

    return Encoder()


@pytest.mark.parametrize(
    ("build", "received"),
    [
        (
            lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")]),
            "Sequential with no layers",
        ),
        (subclassed, "Encoder with no layers"),
        (lambda: assembled(normalize_first=True), "TransformerEncoder 'block_0', TransformerEncoder 'block_1'"),
        (lambda: assembled(pooler=layers.MeanPooler(name="pooler")), "TransformerEncoder 'block_1'"),
        (lambda: keras.Model(x := keras.Input((3,)), keras.layers.Identity(name="embeddings")(x)), "no layers"),
    ],
)
def test_models_of_other_layers_are_refused(build, received):
    with pytest.raises(ValueError, match=rf"functional model as `kbl\.models` makes them: .*Received: .*{received}"):
        encoder_arguments(build())
