"""The library itself, imported when a command has checked what it can without it: TensorFlow takes seconds."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType


def library() -> ModuleType:
    """`keras_bert_lib` with TensorFlow and Keras, imported without their greetings on standard error."""
    with _silent():
        import keras_bert_lib
        import keras_bert_lib.export
        import keras_bert_lib.tasks
    return keras_bert_lib


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Standard error goes nowhere: what C++ writes there while it is loaded, no setting keeps back."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
