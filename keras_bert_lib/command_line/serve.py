"""`kbl serve`: a local server for exported models."""

from __future__ import annotations

import pathlib

import click

import keras_bert_lib as kbl
from keras_bert_lib.command_line.program import Command

_PORT = click.IntRange(0, 65_535)


@click.command(
    cls=Command,
    short_help="Serve an exported model on this machine.",
    examples=[
        "kbl serve saved_models/reviews",
        "kbl serve saved_models/reviews --rest 9001 --no-grpc",
    ],
)
@click.argument("directory")
@click.option("--rest", type=_PORT, default=8501, show_default=True, help="Port for REST; 0 takes a free one.")
@click.option("--grpc", type=_PORT, default=8500, show_default=True, help="Port for gRPC; 0 takes a free one.")
@click.option("--no-rest", is_flag=True, help="Leave REST out.")
@click.option("--no-grpc", is_flag=True, help="Leave gRPC out.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
def serve(directory: str, rest: int, grpc: int, no_rest: bool, no_grpc: bool, host: str) -> None:
    """Serve the model in DIRECTORY, such as saved_models/reviews, by the protocols of TF Serving, until Ctrl-C,
    which is its ordinary end (exit code 0).

    The largest version is served, and new ones are taken up as they appear. This server is for development and tests:
    in production, give the same folder to TF Serving.
    """
    if no_rest and no_grpc:
        raise click.UsageError("--no-rest and --no-grpc leave nothing to serve by.")
    if (pathlib.Path(directory) / "saved_model.pb").is_file():
        raise click.BadParameter(
            f"{directory} is one version. Pass the folder of the model: {pathlib.Path(directory).absolute().parent}.",
            param_hint="DIRECTORY",
        )
    kbl.server.serve(directory, host=host, rest_port=None if no_rest else rest, grpc_port=None if no_grpc else grpc)
