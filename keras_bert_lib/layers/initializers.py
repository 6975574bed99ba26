"""The one initialiser of BERT."""

import keras


def truncated_normal() -> keras.initializers.Initializer:
    """Normal with standard deviation 0.02, cut at two of them, for every kernel and table.

    References: `initializer_range` in google-research/bert `modeling.py` (BertConfig, create_initializer).
    """
    return keras.initializers.TruncatedNormal(stddev=0.02)
