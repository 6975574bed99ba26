"""Check that a server answers as the exported model does: every signature, over gRPC and REST.

Command:  python examples/tf_serving/check_server.py saved_models/reviews --up
Time:     a minute, most of it for the server's image to be loaded; without --up a few seconds
Result:   a line for each signature and protocol with the largest difference; exit code 1 if one is above the tolerance

With `--up`, TF Serving is started by `docker compose` and stopped again; without, the server is one that runs already,
such as `kbl serve saved_models/reviews`. What is asked are the model's own warm-up requests.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the op that cuts words into pieces
from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc

import keras_bert_lib as kbl

HERE = pathlib.Path(__file__).parent


def warm_up_requests(version: pathlib.Path):
    """The requests that the export wrote: `PredictRequest`s, and some for Classify or Regress."""
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        yield log.WhichOneof("log_type"), getattr(log, log.WhichOneof("log_type")).request


def difference(answered: dict, expected: dict) -> float:
    """Between the numbers; infinite if anything else differs."""
    most = 0.0
    for name, tensor in expected.items():
        wanted = tensor.numpy()
        if wanted.dtype.kind == "f":
            most = max(most, float(np.abs(answered[name] - wanted).max()))
        else:
            texts = [text.encode() if isinstance(text, str) else text for text in np.asarray(answered[name]).flat]
            most = most if texts == list(wanted.flat) else np.inf
    return most


def check(folder: pathlib.Path, grpc_address: str, rest_address: str) -> dict[str, float]:
    """The largest difference by signature and protocol."""
    version = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    signatures = tf.saved_model.load(str(version)).signatures
    clients = {
        "gRPC": kbl.export.Client(f"grpc://{grpc_address}", folder.name),
        "REST": kbl.export.Client(f"http://{rest_address}", folder.name),
    }
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(grpc_address))
    found: dict[str, float] = {}
    for kind, request in warm_up_requests(version):
        name = request.model_spec.signature_name
        if kind == "predict_log":
            inputs = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
            expected = signatures[name](**{key: tf.constant(array) for key, array in inputs.items()})
            answers = {
                protocol: client.predict(inputs, signature=name, batch_size=len(next(iter(inputs.values()))))
                for protocol, client in clients.items()
            }
        else:
            examples = [example.SerializeToString() for example in request.input.example_list.examples]
            expected = signatures[name](inputs=tf.constant(examples))
            answers = {"gRPC": by_examples(stub, kind, request)}
        for protocol, answered in answers.items():
            row = f"{name}, {protocol}"
            found[row] = max(found.get(row, 0.0), difference(answered, expected))
    for client in clients.values():
        client.close()
    return found


def by_examples(stub, kind: str, request) -> dict:
    """What Classify or Regress answer, as the outputs of the signature."""
    if kind == "regress_log":
        return {"outputs": np.array([row.value for row in stub.Regress(request).result.regressions])}
    rows = [row.classes for row in stub.Classify(request).result.classifications]
    return {
        "classes": np.array([[entry.label for entry in row] for row in rows], object),
        "scores": np.array([[entry.score for entry in row] for row in rows]),
    }


def wait_for(grpc_address: str, model: str, seconds: float) -> None:
    """Until the model is served."""
    end = time.monotonic() + seconds
    with kbl.export.Client(f"grpc://{grpc_address}", model) as client:
        while True:
            try:
                if any(version.state == "AVAILABLE" for version in client.status()):
                    return
            except kbl.export.ServingError:
                if time.monotonic() > end:
                    raise
            time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="folder of the model, such as saved_models/reviews")
    parser.add_argument("--grpc", default="localhost:8500", metavar="ADDRESS")
    parser.add_argument("--rest", default="localhost:8501", metavar="ADDRESS")
    # Another build of TensorFlow, and perhaps another CPU: 1e-4 in float32; lower precisions fuse differently there.
    parser.add_argument("--tolerance", type=float, default=1e-4, help="0.05 for bfloat16 and int8")
    parser.add_argument("--up", action="store_true", help="start TF Serving by docker compose, and stop it again")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    compose = ["docker", "compose", "--file", HERE / "docker-compose.yml"]
    environment = {**os.environ, "MODEL": folder.name, "SAVED_MODELS": str(folder.parent)}
    if arguments.up:
        subprocess.run([*compose, "up", "--detach"], env=environment, check=True)
    try:
        wait_for(arguments.grpc, folder.name, 120)
        found = check(folder, arguments.grpc, arguments.rest)
    finally:
        if arguments.up:
            subprocess.run([*compose, "down"], env=environment, check=True)
    for row, most in found.items():
        print(f"{row:28} {most:.1e} {'ok' if most <= arguments.tolerance else 'DIFFERS'}")
    sys.exit(any(most > arguments.tolerance for most in found.values()))


if __name__ == "__main__":
    main()
