import numpy as np
import pytest

from keras_bert_lib import models

from .sizes import parameter_count, unallocated

# Layers and widths of the released configurations, google-research/albert; 30,000 pieces, tables 128 wide.
WIDTHS = {models.albert_base: 768, models.albert_large: 1024, models.albert_xlarge: 2048, models.albert_xxlarge: 4096}
LAYERS = {models.albert_base: 12, models.albert_large: 24, models.albert_xlarge: 24, models.albert_xxlarge: 12}
HEADS = {models.albert_base: 12, models.albert_large: 16, models.albert_xlarge: 16, models.albert_xxlarge: 64}
MILLIONS = {models.albert_base: 12, models.albert_large: 18, models.albert_xlarge: 60, models.albert_xxlarge: 235}


def _albert(num_layers: int = 4, num_groups: int = 1, **options):
    return models.albert(20, num_layers, 8, 2, 16, embedding_dim=4, num_groups=num_groups, **options)


BATCH = {
    "token_ids": np.array([[2, 5, 6, 3, 0]]),
    "segment_ids": np.array([[0, 0, 1, 1, 0]]),
    "padding_mask": np.array([[1, 1, 1, 1, 0]]),
}


@pytest.mark.parametrize("size", WIDTHS, ids=lambda size: size.__name__)
def test_sizes_are_those_of_the_released_configurations(size):
    """The parameters are those of one block."""
    model, parameters = unallocated(lambda: (model := size(), model.count_params()))
    assert parameters == parameter_count(30_000, 1, WIDTHS[size], embedding_dim=128)
    assert abs(parameters / 1e6 / MILLIONS[size] - 1) < 0.06  # table 1 of the paper is rounded
    if size is models.albert_base:
        assert parameters == 11_683_584  # those of the released model
    assert model.get_layer("embeddings").embedding_dim == 128
    config = model.get_layer("block_0").get_config()
    assert (config["num_heads"], config["intermediate_dim"]) == (HEADS[size], 4 * WIDTHS[size])
    assert len(model.get_layer("block_0")._inbound_nodes) == LAYERS[size]


def test_defaults_are_those_of_the_released_models():
    model = _albert()
    block, embeddings = model.get_layer("block_0").get_config(), model.get_layer("embeddings").get_config()
    assert block["activation"] == "gelu_approximate"
    assert (block["dropout"], block["attention_dropout"], embeddings["dropout"]) == (0.0, 0.0, 0.0)


def test_layers_share_one_block():
    model = _albert(num_layers=4)
    assert [layer.name for layer in model.layers if layer.name.startswith("block_")] == ["block_0"]
    assert model.count_params() == _albert(num_layers=1).count_params()


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_output_is_that_of_the_unshared_model_with_copied_weights(num_groups):
    """Layers 0 to n/groups - 1 are of group 0, and so on, as in the released code."""
    shared = _albert(4, num_groups)
    unshared = models.transformer_model(
        vocabulary_size=20,
        num_layers=4,
        hidden_dim=8,
        num_heads=2,
        intermediate_dim=16,
        embedding_dim=4,
        activation="gelu_approximate",
    )
    rng = np.random.default_rng(0)
    for variable in shared.trainable_variables:
        variable.assign(rng.normal(scale=0.5, size=variable.shape))
    for name in ("embeddings", "pooler"):
        unshared.get_layer(name).set_weights(shared.get_layer(name).get_weights())
    for layer in range(4):
        group = layer // (4 // num_groups)
        unshared.get_layer(f"block_{layer}").set_weights(shared.get_layer(f"block_{group}").get_weights())
    expected, actual = unshared(BATCH), shared(BATCH)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_groups", [0, 3, 5, -1])
def test_groups_must_divide_the_layers(num_groups):
    with pytest.raises(ValueError, match=rf"must divide `num_layers`.*num_groups={num_groups}, num_layers=4"):
        _albert(4, num_groups)


def test_misspelled_option_is_refused():
    with pytest.raises(TypeError, match="inner_group_num"):
        _albert(inner_group_num=2)
