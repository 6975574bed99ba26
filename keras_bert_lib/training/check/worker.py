"""One process of a job: reads `job.json` of its folder and writes a line of JSON for every item.

python -m keras_bert_lib.training.check.worker FOLDER INDEX
"""

from __future__ import annotations

import json
import pathlib
import sys
import warnings

import tensorflow as tf

from keras_bert_lib.training.check.processes import Job
from keras_bert_lib.training.check.tasks import TASKS


def make_strategy(name: str) -> tf.distribute.Strategy | None:
    """Choose the devices, before anything runs on them, and return the strategy on them.

    `MirroredStrategy` takes the GPUs where there are two or more, and two logical CPU devices otherwise.
    """
    # Products of 10-bit mantissas, the default of newer GPUs, are not the float32 that the bound of float32 means.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # processes share them
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "none":
        return None
    if len(gpus) >= 2:
        return tf.distribute.MirroredStrategy()
    tf.config.set_visible_devices([], "GPU")
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def main(folder: pathlib.Path, index: str) -> None:
    """Answer every item of the job in `folder`."""
    warnings.simplefilter("ignore")
    tf.get_logger().setLevel("ERROR")  # the last line of a log shall be an error, not a hint about retracing
    job = Job(**json.loads((folder / "job.json").read_text()))
    strategy = make_strategy(job.strategy)
    with open(folder / f"{index}.jsonl", "w") as file:
        for task, side, argument in job.items:
            print(json.dumps(TASKS[task](argument, side, strategy)), file=file, flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
