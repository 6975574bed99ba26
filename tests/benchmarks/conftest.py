"""Trials here ask whether a report is written, not what its numbers are."""

import pytest


@pytest.fixture(autouse=True)
def _graphs_as_written(graphs_as_written):
    """Graphs that run once or twice are not rewritten before; contestants in processes of their own rewrite theirs."""
