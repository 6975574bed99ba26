"""A Keras model whose train step is right on one device, on many replicas, and in any precision."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_bert_lib.layers.custom_gradient import release_with_graph
from keras_bert_lib.layers.onednn import assumes_frozen_weights
from keras_bert_lib.models.named_inputs import NamedInputs
from keras_bert_lib.training.epochs import Epochs, agree_on_seed, cardinality, endless, one_pass
from keras_bert_lib.training.global_loss import GlobalLoss
from keras_bert_lib.training.optimizer_step import LossScale, check_optimizer, merge_rows, scalar_variable, update
from keras_bert_lib.training.resume import resuming
from keras_bert_lib.training.step_function import step_function
from keras_bert_lib.training.step_report import StepReport, all_finite, count_tokens, fingerprint, non_finite_error

_REPLICATED = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
_REFUSED = (
    tf.distribute.TPUStrategy,
    tf.distribute.experimental.TPUStrategy,  # another class
    tf.distribute.ParameterServerStrategy,
    tf.distribute.experimental.CentralStorageStrategy,
)
_FROZEN_WEIGHTS = (
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS is set in the environment, with which TensorFlow multiplies by the weights of the "
    "first step in all later ones. It is for processes that only answer. Start Python without it to train."
)
_NO_DATA = "The data hold no batch. Look at what filters or shards them."


class Model(keras.Model):
    """`keras.Model` with one train step for one device, `MirroredStrategy` and `MultiWorkerMirroredStrategy`.

    `fit`, `evaluate`, `predict`, callbacks and metrics are Keras's own. A step does what training on one device with
    the whole global batch does, whatever the number of replicas, and however uneven their shares:

    1. each replica takes the *sum* of its losses; sums, their weights and the gradients are added over the replicas
    2. gradients are sums: a token that occurs twice counts once, with its summed gradient
    3. then, on the reduced gradients: unscale, check that all are finite, clip, apply

    A step whose loss or gradients are not finite is never applied. Under float16, where it may be an overflow, it
    halves the loss scale, and the progress bar shows `loss_scale` and `skipped_steps`; else training stops with an
    error that names what was not finite, or leaves the step out, as `compile(non_finite=)` says.

    After each call of the train function `step_report` tells of its steps what logs do not: the norm of the gradients,
    the tokens, and whether all was finite.

    Build it from `(inputs, outputs)` like a functional `keras.Model`, or subclass it and write `call`. A subclass with
    functional construction derives from `FunctionalModel`.

    Args:
        *args: `inputs, outputs` of a functional model, or nothing.
        **kwargs: `name`, `trainable`, `dtype`.
    Example:
    >>> token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    >>> x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 4)(token_ids))
    >>> model = Model(token_ids, keras.layers.Dense(2)(x))
    >>> model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), accumulation_steps=2)
    >>> history = model.fit(tf.constant([[1, 2], [3, 3], [4, 5]]), tf.constant([0, 1, 1]), verbose=0)
    >>> list(history.history)
    ['loss']
    """

    accumulation_steps = 1
    step_report: StepReport | None = None
    _takes_up = False  # an interrupted run
    _steps_to_skip = 0
    _drop: Callable | None = None
    _steps_per_epoch: int | None = None  # if `fit` was told
    _step = 0  # of the epoch
    _test_steps_left: int | None = None  # if `evaluate` was told
    _scales_loss = False
    _loss_scale = None
    _may_skip = False

    def __new__(cls, *args, **kwargs):
        functional = cls is Model and (args or "inputs" in kwargs)
        return super().__new__(FunctionalModel if functional else cls)

    def __init__(self, *args, **kwargs):
        if len(args) > 1 or "outputs" in kwargs:
            # Keras would now put its functional class among the bases of Model itself, for all other subclasses too.
            raise TypeError(
                f"{type(self).__name__} passes inputs and outputs to the constructor. Derive it from "
                "kbl.training.FunctionalModel instead of kbl.training.Model."
            )
        super().__init__(*args, **kwargs)

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
        auto_scale_loss: bool = True,
        accumulation_steps: int = 1,
        non_finite: Literal["raise", "skip"] = "raise",
    ) -> None:
        """Configure training; the arguments of `keras.Model.compile`, `accumulation_steps` and `non_finite`.

        Args:
            optimizer: Keras optimizer that overrides `build`, `update_step` and `get_config` at most.
            loss: Loss or structure of losses.
            loss_weights: Factors of the losses.
            metrics: Metrics without sample weights.
            weighted_metrics: Metrics with sample weights.
            run_eagerly: Run the steps without a graph, to debug.
            steps_per_execution: Number of steps in one call of the graph.
            jit_compile: Compile with XLA; off by default, since it is slower on CPUs and compiles anew for every
                sequence length. One device only.
            auto_scale_loss: Scale the loss where a layer computes in float16.
            accumulation_steps: Number of slices into which a step cuts its batch, one after the other, to save memory.
                Loss and gradients remain those of the whole batch.
            non_finite: What a step does whose loss or gradients are not finite, which no smaller loss scale would mend:
                "raise" stops `fit` with a FloatingPointError that names them, "skip" leaves the step out, metrics
                included, and counts it in `skipped_steps`.
        Raises:
            ValueError: for an optimizer, strategy or combination that cannot train rightly.
        """
        strategy = self.distribute_strategy
        if isinstance(strategy, _REFUSED):
            raise ValueError(
                "kbl.training.Model trains on one device, under MirroredStrategy and MultiWorkerMirroredStrategy. "
                f"Received: {type(strategy).__name__}."
            )
        if jit_compile and isinstance(strategy, _REPLICATED):
            raise ValueError(
                f"TensorFlow cannot compile a step with XLA under {type(strategy).__name__}. Use jit_compile=False."
            )
        if accumulation_steps < 1:
            raise ValueError(f"`accumulation_steps` must be at least 1. Received: {accumulation_steps}.")
        if non_finite not in ("raise", "skip"):
            raise ValueError(f"`non_finite` must be 'raise' or 'skip'. Received: {non_finite!r}.")
        if type(self).compute_loss is not keras.Model.compute_loss:
            raise ValueError(
                f"{type(self).__name__} overrides compute_loss(), whose mean over one replica the train step cannot "
                "use. Pass the loss to compile(), or call add_loss()."
            )
        optimizer = keras.optimizers.get(optimizer)
        if optimizer is not None:
            check_optimizer(optimizer)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=False,
        )
        names = getattr(self, "output_names", None)
        self._compile_loss = None if loss is None else GlobalLoss(loss, loss_weights, names)
        self.accumulation_steps = accumulation_steps
        self._auto_scale_loss = auto_scale_loss
        # Of the layers that have weights, all the way down: inputs and functional models compute nothing, and have the
        # policy of the process that made them, or has read their file. Before a model is built nobody knows.
        layers = [layer for layer in self._flatten_layers() if layer._trainable_variables or not self.built]
        computes_in = {layer.compute_dtype for layer in layers}
        self._scales_loss = auto_scale_loss and "float16" in computes_in
        self._loss_scale = None
        self._non_finite = non_finite
        self._may_skip = self._scales_loss or non_finite == "skip"

    @functools.wraps(keras.Model.fit, assigned=())
    def fit(self, *args, **kwargs):
        """`keras.Model.fit`; a `Resume` among the callbacks takes up an interrupted run.

        Raises:
            ValueError: if the data hold no batch.
            RuntimeError: if TensorFlow was told that weights do not change (TF_ONEDNN_ASSUME_FROZEN_WEIGHTS).
            FloatingPointError: if a loss or gradient is not finite, and compile() does not say `non_finite="skip"`.
            ConnectionError: if another worker of a `MultiWorkerMirroredStrategy` ends.
        """
        arguments = inspect.signature(keras.Model.fit).bind(self, *args, **kwargs).arguments
        del arguments["self"]
        if isinstance(arguments.get("validation_data"), Epochs):
            data = agree_on_seed(arguments["validation_data"], self.distribute_strategy)
            arguments["validation_data"] = data.epoch()
        with resuming(self, arguments) as arguments, _naming_lost_workers(self.distribute_strategy):
            of_outer_fit = self._steps_per_epoch, self._step
            data, per_epoch = arguments.get("x"), arguments.get("steps_per_epoch")
            count = cardinality(data) if isinstance(data, tf.data.Dataset) else 0
            if count and (per_epoch or 0) % self.steps_per_execution:
                # Of data whose length it knows Keras counts the steps, and counts a short call for a full one.
                arguments["x"] = one_pass(data) if count % per_epoch else endless(data)
                count = None
            self._steps_per_epoch = per_epoch if count is None else None
            self._step = self._steps_to_skip % (per_epoch or 1)
            self.step_report = None
            starts_anew = not self.skips_steps and arguments.get("initial_epoch", 0) < arguments.get("epochs", 1)
            try:
                history = super().fit(**arguments)
            finally:
                self._steps_per_epoch, self._step = of_outer_fit
            if self.step_report is None and starts_anew:
                self.train_function = None  # under a strategy, one that was traced on no data finds none later
                raise ValueError(_NO_DATA)
            return history

    @functools.wraps(keras.Model.evaluate, assigned=())
    def evaluate(self, x=None, *args, **kwargs):
        """`keras.Model.evaluate`; of `kbl.training.PretrainingData` one epoch."""
        if isinstance(x, Epochs):
            x = agree_on_seed(x, self.distribute_strategy).epoch()
        arguments = inspect.signature(keras.Model.evaluate).bind(self, x, *args, **kwargs).arguments
        self._test_steps_left = arguments.get("steps")
        try:
            return super().evaluate(x, *args, **kwargs)
        finally:
            self._test_steps_left = None

    @contextlib.contextmanager
    def taking_up(self, steps: int, drop: Callable[[Any], None]):
        """Inside, `fit` makes all variables before it starts, and does not make its first `steps` steps; `drop` takes
        batches that are not wanted from its iterator."""
        self._takes_up, self._steps_to_skip, self._drop = True, steps, drop
        try:
            yield
        finally:
            self._takes_up, self._steps_to_skip, self._drop = False, 0, None

    def count_steps(self) -> int:
        """Number of steps that were made, those that were left out counted."""
        skipped = self._skipped_steps().numpy() if self._may_skip else 0
        return int(self.optimizer.iterations.numpy()) + int(skipped)

    @property
    def skips_steps(self) -> bool:
        """Whether the next step is one that an earlier process has made."""
        return self._steps_to_skip > 0

    def get_compile_config(self) -> dict:
        """Serialized arguments of `compile`."""
        config = super().get_compile_config()
        if config:
            config |= {
                "auto_scale_loss": self._auto_scale_loss,
                "accumulation_steps": self.accumulation_steps,
                "non_finite": self._non_finite,
            }
        return config

    def compile_from_config(self, config: dict) -> None:
        """Compile as `get_compile_config` describes, and make the optimizer's variables so that they can be loaded."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self._build_optimizer()

    def train_step(self, data) -> StepReport:
        """One step on this replica's share `data` of the global batch; runs in replica context."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        # Statistics, and no weights that are frozen.
        changed = [v for layer in self._flatten_layers() for v in layer._non_trainable_variables]
        changed = [v for v in changed if v.dtype.startswith(("float", "bfloat"))]
        changed += self.metrics_variables if self._may_skip else []
        before = [tf.identity(variable.value) for variable in changed]
        if self.accumulation_steps == 1:
            gradients, sums, weights, totals = self._gradients(x, y, sample_weight)
        else:
            gradients, sums, weights, totals = self._accumulated_gradients(x, y, sample_weight)
        variables, gradients = self._with_gradient(gradients)
        not_finite = tf.stack([tf.cast(tf.logical_not(all_finite(part)), tf.float32) for part in (y, sample_weight)])
        *gradients, sums, not_finite, tokens = _sum_over_replicas([*gradients, sums, not_finite, count_tokens(x)])
        finite_data = tf.equal(not_finite, 0.0)
        losses = tf.math.divide_no_nan(sums, totals)
        self._record_loss(losses, weights)
        norm, finite, failed = self._apply(gradients, variables, all_finite(losses), tf.reduce_all(finite_data))
        for variable, value in zip(changed, before, strict=True):
            variable.assign(tf.where(finite, variable.value, value))
        return StepReport(
            tf.constant(1), tokens[0], tokens[1], norm, losses, failed, *tf.unstack(finite_data), fingerprint(x)
        )

    def test_step(self, data):
        """Loss and metrics of this replica's share `data` of the global batch; runs in replica context."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred, sums, weights = self._forward(x, y, sample_weight, training=False)
        self._record_loss(tf.math.divide_no_nan(*_sum_over_replicas([sums, weights])), weights)
        self.compute_metrics(x, y, y_pred, sample_weight)

    def make_train_function(self, force: bool = False):
        """Make the function that `fit` calls; Keras's hook."""
        if assumes_frozen_weights():
            raise RuntimeError(_FROZEN_WEIGHTS)
        if self.train_function is None or force:

            def step(data):
                report = self.train_step(data)
                if not isinstance(report, StepReport):
                    raise TypeError(
                        f"{type(self).__name__}.train_step must return what super().train_step(data) returns. "
                        f"Received: {type(report).__name__}."
                    )
                return report

            run = step_function(self, step, self._train_logs, self._no_report, self._make_variables_of_training)

            def train(iterator):
                if self._drop is not None:
                    self._drop(iterator)
                    self._drop = None
                if self.skips_steps:
                    self._steps_to_skip -= self.steps_per_execution
                    if self.skips_steps:
                        return {}
                    with self.distribute_strategy.scope():
                        return self._train_logs()  # those of the epoch, if no step follows
                try:
                    logs, self.step_report = run(iterator, self._next_steps())
                except (StopIteration, tf.errors.OutOfRangeError):
                    self._step = 0  # the data ended before the epoch did
                    raise
                if self.step_report.failed:
                    raise self._non_finite_error()
                return logs

            self.train_function = train
        return self.train_function

    def _next_steps(self) -> int:
        """Number of steps of the next call: Keras takes the last of an epoch for full, and would read beyond it."""
        if self._steps_per_epoch is None:
            return self.steps_per_execution
        steps = min(self.steps_per_execution, self._steps_per_epoch - self._step)
        self._step = (self._step + steps) % self._steps_per_epoch
        return steps

    def make_test_function(self, force: bool = False):
        """Make the function that `evaluate` calls; Keras's hook."""
        if self.test_function is None or force:

            def step(data):
                self.test_step(data)
                return ()  # there is nothing to report

            run = step_function(self, step, self.get_metrics_result, tuple, self._make_variables_of_losses)
            self.test_function = lambda iterator: run(iterator, self._next_test_steps())[0]
        return self.test_function

    def _next_test_steps(self) -> int:
        """The same for `evaluate`."""
        if self._test_steps_left is None:
            return self.steps_per_execution
        steps = min(self.steps_per_execution, self._test_steps_left)
        self._test_steps_left -= steps
        return steps

    def _forward(self, x, y, sample_weight, training):
        """Return outputs, and sums and weights, float32 [1 + losses], of the additional and the compiled losses."""
        y_pred = self(x, training=training)
        sums = [] if self._compile_loss is None else self._compile_loss.sums(y, y_pred, sample_weight)
        additional = [tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in self.losses]
        if not sums and not additional:
            raise ValueError("There is no loss to minimize. Pass `loss` to compile(), or call add_loss() in a layer.")
        # Regularizers are equal everywhere, and add_loss() takes a mean over examples: both count once per example.
        additional = tf.math.multiply_no_nan(tf.add_n(additional), _batch_size(x)) if additional else tf.zeros(())
        return y_pred, tf.stack([additional, *sums]), self._batch_weights(x, y, y_pred, sample_weight)

    def _batch_weights(self, x, y, y_pred, sample_weight):
        """Return what losses are means over, float32 [1 + losses]: examples, then the weight of each compiled loss."""
        weights = [] if self._compile_loss is None else self._compile_loss.weights(y, y_pred, sample_weight)
        return tf.stack([_batch_size(x), *weights])

    def _gradients(self, x, y, sample_weight, totals=None):
        """Return this part's share of the gradients, its sums and weights, and the weights of the global batch."""
        with tf.GradientTape() as tape:
            y_pred, sums, weights = self._forward(x, y, sample_weight, training=True)
        is_whole = totals is None  # and no slice of the batch
        if is_whole:
            totals = _sum_over_replicas(weights)
        share = tf.math.divide_no_nan(self._loss_weights(), totals)
        scale = self._build_optimizer()
        if scale is not None:
            share *= scale.value
        gradients = tape.gradient(sums, self.trainable_variables, output_gradients=share)
        self.compute_metrics(x, y, y_pred, sample_weight)
        # Everything after this is not linear.
        in_slices = is_whole and not self.jit_compile and self.distribute_strategy.num_replicas_in_sync == 1
        gradients = merge_rows(self.optimizer, gradients, self.trainable_variables, in_slices)
        return gradients, sums, weights, totals

    def _accumulated_gradients(self, x, y, sample_weight):
        """As `_gradients`, one slice of the batch after the other."""
        # The slices need the weights of the whole batch first. They follow from labels, masks and sample weights, so
        # TensorFlow prunes this pass through the model down to the masks.
        weights = self._batch_weights(x, y, self(x, training=False), sample_weight)
        totals = _sum_over_replicas(weights)
        examples = tf.cast(_batch_size(x), tf.int32)
        has_gradient = [False] * len(self.trainable_variables)

        def add_slice(index, gradients, sums):
            start, end = (examples * i // self.accumulation_steps for i in (index, index + 1))
            batch = keras.tree.map_structure(lambda t: None if t is None else t[start:end], (x, y, sample_weight))
            new, new_sums, *_ = self._gradients(*batch, totals)
            has_gradient[:] = [g is not None for g in new]
            gradients = [a if g is None else a + g for a, g in zip(gradients, new, strict=True)]
            return index + 1, gradients, sums + new_sums

        zeros = [tf.zeros(v.shape, v.dtype) for v in self.trainable_variables]
        _, gradients, sums = tf.while_loop(
            lambda index, *_: index < self.accumulation_steps,
            add_slice,
            [tf.constant(0), zeros, tf.zeros_like(totals)],
            parallel_iterations=1,
        )
        return [g if has else None for g, has in zip(gradients, has_gradient, strict=True)], sums, weights, totals

    def _with_gradient(self, gradients):
        """Return the variables that the loss reaches, and their gradients."""
        pairs = [(v, g) for v, g in zip(self.trainable_variables, gradients, strict=True) if g is not None]
        if not pairs:
            raise ValueError("The loss depends on no trainable variable. Make a layer trainable, then compile() again.")
        if missing := [v.path for v, g in zip(self.trainable_variables, gradients, strict=True) if g is None]:
            warnings.warn(f"The loss does not depend on {missing}, which will stay as they are.", stacklevel=2)
        return zip(*pairs, strict=True)

    def _apply(self, gradients, variables, finite_losses, finite_data):
        """Update, if all is finite. Return the gradients' norm, whether all was, and whether training has to stop."""
        optimizer, scale = self.optimizer, self._build_optimizer()
        loss_scale = None if scale is None else tf.convert_to_tensor(scale.value)
        norm = tf.linalg.global_norm([tf.cast(gradient, tf.float32) for gradient in gradients])
        finite = tf.logical_and(tf.math.is_finite(norm), finite_losses)
        failed = tf.logical_not(finite)

        def apply():
            update(optimizer, gradients, variables, norm, loss_scale)
            return True

        tf.cond(finite, apply, lambda: False)
        if self._may_skip:
            self._skipped_steps().assign_add(tf.cast(failed, tf.int32))
        if scale is not None:
            scale.update(finite)
            norm /= loss_scale
            failed &= tf.logical_or(loss_scale <= 1.0, tf.logical_not(finite_data))
        # Outside of the cond: the counter is aggregated over the replicas, which takes a merge call.
        optimizer.iterations.assign_add(tf.cast(finite, optimizer.iterations.dtype))
        return norm, finite, failed & (self._non_finite == "raise")

    def _build_optimizer(self) -> LossScale | None:
        """Make the optimizer's variables, once, and return the loss scale where there is one."""
        if not self.optimizer.built:
            with tf.init_scope():  # traced, a slot that starts as a copy of its variable would be set in each step
                self.optimizer.build(self.trainable_variables)
        if self._scales_loss and self._loss_scale is None:
            self._loss_scale = LossScale(self.optimizer)
        self._skipped_steps()
        return self._loss_scale

    def _skipped_steps(self) -> keras.Variable | None:
        """Counter of the steps that were left out, where any may be. As an attribute it would become a weight."""
        return scalar_variable(self.optimizer, "skipped_steps", "int32", 0) if self._may_skip else None

    def _loss_weights(self):
        return tf.constant([1.0, *(self._compile_loss.loss_weights if self._compile_loss is not None else [])])

    def _record_loss(self, losses, weights):
        """Record the losses of the global batch; `weights` are those of this replica, since metrics add up what all
        replicas record. The total is a mean over examples, as Keras's; each loss over what it is a mean of."""
        self._loss_tracker.update_state(tf.reduce_sum(losses * self._loss_weights()), sample_weight=weights[0])
        for index, metric in enumerate(self._compile_loss.metrics if self._compile_loss is not None else []):
            metric.update_state(losses[1 + index], sample_weight=weights[1 + index])

    def _train_logs(self):
        logs = self.get_metrics_result()
        if self._loss_scale is not None:
            logs["loss_scale"] = self._loss_scale.value.value
        if self._may_skip:
            logs["skipped_steps"] = self._skipped_steps().value
        return logs

    def _no_report(self) -> StepReport:
        return StepReport.empty(len(self._loss_names()) - 1)

    def _non_finite_error(self) -> FloatingPointError:
        update = int(self.optimizer.iterations.numpy())
        return non_finite_error(self.step_report, update, self._loss_names(), self.variables)

    def _loss_names(self):
        """Names of the additional losses together, and of each compiled loss."""
        metrics = self._compile_loss.metrics if self._compile_loss is not None else []
        compiled = [metric.name for metric in metrics] or ["loss"][: self._compile_loss is not None]
        return ["the sum of add_loss() and regularizers", *compiled]

    def _make_variables_of_training(self, batch) -> None:
        """Make what a first step would make, where it is known: TensorFlow traces a step that makes variables twice."""
        if self._make_variables_of_losses(batch):
            self._build_optimizer()

    def _make_variables_of_losses(self, batch) -> bool:
        """Make those of losses and metrics, given a batch or its specs. Return whether the outputs are known before."""
        of_fixed_outputs = isinstance(self, FunctionalModel) and type(self).call is NamedInputs.call
        if not of_fixed_outputs or isinstance(self.distribute_strategy, _REPLICATED):  # which has made them already
            return False
        parts = (self._compile_loss, self._compile_metrics)
        if unbuilt := [part for part in parts if part is not None and not part.built]:
            _, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
            if all(_has_rank(label) for label in keras.tree.flatten(labels)):
                for part in unbuilt:
                    part.build(labels, self.output)
        return True

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Make all variables before the first step where it needs them: on replicas, inside loops, to keep or restore.

        Keras's own reads the first batch by taking its mean over the replicas, which fails for strings, bools, and
        shares of different sizes. Here no iterator is made: one that is given up while it prefetches for several
        devices can take the process with it.
        """
        strategy = self.distribute_strategy
        in_loop = self.accumulation_steps > 1 or self.steps_per_execution > 1
        if not (in_loop or self._may_skip or self._takes_up or isinstance(strategy, _REPLICATED)):
            return
        if iterator is not None:  # of Keras's epochs; what it iterates over is the distributed dataset
            data_batch = keras.tree.map_structure(_first_spec, iterator._get_iterator().element_spec)
        with strategy.scope():
            self._symbolic_build(data_batch=data_batch)
            if self.optimizer is not None:
                self._build_optimizer()


@contextlib.contextmanager
def _naming_lost_workers(strategy):
    """Say what has happened, and what to do, when TensorFlow loses another worker."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise ConnectionError(
            "Another worker of the cluster has ended or cannot be reached, so that this one cannot go on. Look at its "
            "log, then start all workers again; with kbl.training.Resume they go on where they were. TensorFlow said: "
            f"{error.message}"
        ) from error


def _sum_over_replicas(tensors):
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tensors
    sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)
    release_with_graph(sums)
    return sums


def _first_spec(spec: tf.TypeSpec) -> tf.TensorSpec | None:
    """What one replica gets of a part of the data; `None` for a part that is `None`."""
    return next((s for s in tf.nest.flatten(spec, expand_composites=True) if isinstance(s, tf.TensorSpec)), None)


def _has_rank(value) -> bool:
    """Whether the number of axes of an array or a spec is known."""
    return tf.TensorShape(getattr(value, "shape", None)).rank is not None


def _batch_size(x):
    """Number of examples of this part of the batch, float32."""
    first = next(value for value in keras.tree.flatten(x) if value is not None)
    return tf.cast(tf.shape(first)[0], tf.float32)


@keras.saving.register_keras_serializable(package="keras_bert_lib")
class FunctionalModel(Model, NamedInputs):
    """The class of `Model(inputs, outputs)`; derive from it to write a subclass with functional construction."""

    __init__ = NamedInputs.__init__
