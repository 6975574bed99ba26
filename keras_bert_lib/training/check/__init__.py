"""Shows on the devices at hand that training is right, and what stock Keras does there.

    python -m keras_bert_lib.training.check

Nothing of this package is imported by the rest of the library.
"""
