"""A page about an exported model, for the people who run it."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from keras_bert_lib._version import __version__
from keras_bert_lib.export.serving_rules import OpContract
from keras_bert_lib.export.signatures import Signature

NAME = "model_card.md"

_CARD = """\
# {name}

Exported by keras_bert_lib {version} with TensorFlow {tensorflow} and Keras {keras}. {parameters:,} parameters, files
of {bytes:,} bytes. Computes in {precision}{difference}. Runs on TF Serving {server} and newer{cpus}.
{figures}
## Signatures

| signature | API | inputs | outputs | TF Serving from |
|---|---|---|---|---|
{signatures}

The batch, `B`, is free; `S` is the number of tokens{letters}. Where `S` is free, too, requests of unequal width that
meet in a batch of the server fail together: send strings, or token ids of one width{tokenized}.

## Serve it

From the folder that holds `{name}/`:

```sh
docker run --rm -p 8500:8500 -p 8501:8501 -v "$PWD/{name}:/models/{name}" -e MODEL_NAME={name} \\
    tensorflow/serving:{image} --enable_batching --enable_per_model_batching_parameters
```

```sh
curl -d '{request}' \\
    http://localhost:8501/v1/models/{name}:predict
```

`assets.extra/tf_serving_warmup_requests` is replayed before the first answer, `batching_params.pbtxt` is read with the
two flags above, `assets.extra/model.config` is a sample for a server of several models.

## Checksums

`sha256sum --check` reads these lines, in the folder of the version.

```
{checksums}
```
"""


_LETTERS = {"M": "masked positions", "P": "sequences in a row"}
_SECOND_AXES = {"mask_positions": "M", "masked_lm": "M", "first_positions": "P", "next_sentence": "P"}
_INT8_CPUS = ", on x86 CPUs with AVX512-VNNI, bfloat16 or AMX, where oneDNN is on"


def write_model_card(
    directory: pathlib.Path,
    name: str,
    signatures: Mapping[str, Signature],
    outputs: Mapping[str, Mapping[str, tf.TensorSpec]],
    contract: OpContract,
    parameters: int,
    precision: str,
    difference: float | None,
    metrics: Mapping[str, float],
) -> None:
    """Writes `model_card.md`, last of all: it holds a checksum of each file.

    Args:
        directory: Folder of the SavedModel.
        name: Of the model, as the server will know it.
        signatures: Names to signatures.
        outputs: For each the names and specs of its outputs.
        contract: From `op_contract`.
        parameters: Number of weights.
        precision: What it computes in.
        difference: Largest one from the answers in float32; `None` where it computes in that.
        metrics: Figures that the user has of the model, such as {"accuracy": 0.93}.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    rows = [
        f"| `{key}` | {signature.method.capitalize()} | {_listed(signature.specs)} | "
        f"{_listed(outputs[key].values())} | {contract.signatures[key]} |"
        for key, signature in signatures.items()
    ]
    all_rows = "\n".join(rows)
    server = max(contract.signatures.values(), key=lambda version: [int(part) for part in version.split(".")])
    figures = "".join(f"\n| {metric} | {value:.4g} |" for metric, value in metrics.items())
    card = _CARD.format(
        name=name,
        version=__version__,
        tensorflow=tf.__version__,
        keras=keras.__version__,
        precision=precision,
        letters="".join(
            f", `{letter}` that of {what}" for letter, what in _LETTERS.items() if f", {letter}" in all_rows
        ),
        tokenized=", as `tokenize` answers them" if "tokenize" in signatures else "",
        cpus=_INT8_CPUS if "_QuantizedMatMul" in contract.ops else "",
        difference="" if difference is None else f", up to {difference:.1e} from its answers in float32",
        parameters=parameters,
        bytes=sum(path.stat().st_size for path in files),
        server=server,
        image=f"{server}.0",
        figures=f"\n| figure | value |\n|---|---:|{figures}\n" if metrics else "",
        signatures=all_rows,
        request=json.dumps({"instances": [_instance(signatures["serving_default"].specs)]}),
        checksums="\n".join(f"{_sha256(path)}  {path.relative_to(directory).as_posix()}" for path in files),
    )
    (directory / NAME).write_text(card, encoding="utf-8")


def _listed(specs: Sequence[tf.TensorSpec]) -> str:
    return ", ".join(f"`{spec.name}` {spec.dtype.name} {_shape(spec)}" for spec in specs)


def _shape(spec: tf.TensorSpec) -> str:
    letters = ["B", _SECOND_AXES.get(spec.name, "S"), *["?"] * 8]
    return f"[{', '.join(letters[i] if size is None else str(size) for i, size in enumerate(spec.shape))}]"


def _instance(specs: Sequence[tf.TensorSpec]) -> object:
    """One row of a request in REST's row format."""
    inputs = [spec.name for spec in specs]
    if inputs == ["text"]:
        return "A gem of a film."
    if inputs == ["first", "second"]:
        return {"first": "A gem of a film.", "second": "Two hours I want back."}
    return {spec.name: [int(spec.name != "segment_ids")] * (spec.shape[1] or 3) for spec in specs}


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
