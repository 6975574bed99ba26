"""One device, or two replicas."""

import contextlib

import pytest


@pytest.fixture(params=["one device", "two replicas"])
def scope(request) -> contextlib.AbstractContextManager:
    """Where a model is made: on one device, or on two replicas."""
    return request.getfixturevalue("mirrored").scope() if request.param == "two replicas" else contextlib.nullcontext()
