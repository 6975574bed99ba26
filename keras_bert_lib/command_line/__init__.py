"""The program `kbl`: trains, asks, exports, serves and measures models from a shell.

Exit codes: 0 done, 1 the work failed (bad data, a failed check, no server), 2 wrong usage, 130 Ctrl-C. An expected
error is one sentence on standard error.
"""

from __future__ import annotations

from keras_bert_lib.command_line import ask, bench, evaluate, export, inspect, predict, serve, train
from keras_bert_lib.command_line.program import kbl

__all__ = ["kbl", "main"]

# In the order of a model's life, which is that of the help.
for _command in (
    train.train,
    evaluate.evaluate,
    predict.predict,
    export.export,
    inspect.inspect,
    serve.serve,
    ask.ask,
    bench.bench,
):
    kbl.add_command(_command)


def main() -> None:
    """Run the program with the arguments of the process."""
    kbl(prog_name="kbl")
