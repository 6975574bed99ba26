"""What a client may read when a request is refused: a code and one sentence, never a path, a trace or a node's name."""

from __future__ import annotations

import enum
import re

import tensorflow as tf

# A status travels in HTTP/2 headers over gRPC, and clients accept 8 KiB of them.
MESSAGE_CHARACTERS = 1_000
# An absolute one, or a relative one of three parts: "1/2" is none.
# The look behind keeps a long word from being tried again at each of its letters, which takes time that is quadratic.
_PATH = re.compile(r"(?<!\w)(?:[A-Za-z]:)?(?:[\\/][^\s'\"\\/:;,]+)+[\\/]?|(?<![\w.-])[\w.-]+(?:[\\/][\w.-]+){2,}")
NEUTRAL = "The request could not be answered. The server's log says why."


class Code(enum.IntEnum):
    """Status codes, with the numbers that gRPC and TensorFlow share."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class RequestError(Exception):
    """A request that is refused, with the code and the sentence for its client.

    Args:
        code: Status code.
        message: Sentence. What is too long for a header is cut off, and a lone surrogate becomes `?`.
    """

    def __init__(self, code: Code, message: str):
        message = message.encode("utf-8", "replace").decode("utf-8")
        if len(message) > MESSAGE_CHARACTERS:
            message = message[:MESSAGE_CHARACTERS] + "..."
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> RequestError:
    """The error of a request that can never be answered."""
    return RequestError(Code.INVALID_ARGUMENT, message)


def from_tensorflow(error: tf.errors.OpError) -> RequestError | None:
    """What a client may know of an op's error: its own last line, such as "indices[0] = 9 is not in [0, 5)".

    Args:
        error: Error of a signature that ran.
    Returns:
        The error to answer with. `None` where the fault is not the request's.
    """
    codes = {Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED}
    if error.error_code not in codes:
        return None
    return RequestError(Code(error.error_code), without_paths(_own_words(error.message)) or NEUTRAL)


def without_paths(text: str) -> str:
    """The text, with the last part of a path in the place of the whole path."""
    text = text[: 2 * MESSAGE_CHARACTERS]  # an op quotes whole strings of the request; more is cut off later anyway
    return _PATH.sub(lambda path: re.split(r"[\\/]", path[0].rstrip("\\/"))[-1], text)


def _own_words(message: str) -> str:
    """The op's message without the trace that stands before it and the nodes that stand behind it."""
    lines = [line.strip() for line in message.split("[[")[0].splitlines() if line.strip()]
    return re.sub(r"\{\{[^{}]*\}\}", "", lines[-1][: 4 * MESSAGE_CHARACTERS]).strip() if lines else ""
