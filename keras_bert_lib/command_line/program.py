"""What all commands of `kbl` share: their help with examples, their errors, their exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from keras_bert_lib._version import __version__

_CTRL_C, _BROKEN_PIPE = 130, 141  # 128 + the number of the signal, as shells count


class Command(click.Command):
    """A command whose help ends with examples that run.

    Args:
        examples: Lines for a shell.
        options: Arguments of `click.Command`.
    """

    def __init__(self, *, examples: Sequence[str], **options):
        super().__init__(**options)
        self.examples = list(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  {example}\n")


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(_CTRL_C)
        except BrokenPipeError:
            # Who read has gone, as `head` does. What is still in the buffer must not be written at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(_BROKEN_PIPE)
        except Exception as error:
            if not _is_expected(error):
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            raise click.ClickException(_sentence(error)) from error


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show where an error comes from: kbl --debug COMMAND ...")
@click.version_option(__version__, package_name="keras_bert_lib", message="%(version)s")
def kbl(debug: bool) -> None:
    """BERT-style text models: train, ask, export, serve, measure.

    Data are CSV, TSV, JSON lines or plain text with one text a line; answers are JSON lines on standard output, and
    all else goes to standard error. A way through:

    \b
      kbl train reviews.csv --output reviews.keras
      kbl export reviews.keras saved_models/reviews
      kbl serve saved_models/reviews
      kbl ask http://localhost:8501 reviews "A gem of a film."

    Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 Ctrl-C.
    """


def _is_expected(error: Exception) -> bool:
    """Whether the message is meant for the user. Other errors are faults of the program, and show their trace."""
    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        return False  # click's own, which it shows itself
    tensorflow = sys.modules.get("tensorflow")
    operation = (tensorflow.errors.OpError,) if tensorflow else ()
    return isinstance(error, (ValueError, OSError, RuntimeError, ImportError, *operation))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__
