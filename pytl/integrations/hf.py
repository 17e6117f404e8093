"""The optimizer, RIFLE and the recorder in Hugging Face's Trainer."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pytl.extras import require
from pytl.integrations.attached import AttachedRecorder, AttachedRIFLE
from pytl.optim import AdamW, param_groups
from pytl.optim.base import Optimizer as PytlOptimizer
from pytl.regularizers import Penalty

_callbacks = require("transformers.trainer_callback", "hf")
_trainer = require("transformers.trainer", "hf")

# Not the class's name: under `restore_callback_states_from_checkpoint` Trainer would replace the callback by one made
# from JSON, which holds neither a module nor a function. What stands here travels in trainer_state.json either way.
_KEY = "RIFLE"


class GroupedOptimizer:
    """What Trainer makes its optimizer with: `param_groups` of its model, and an optimizer of them."""

    def __call__(
        self, model: nn.Module, *, kind: Callable[..., Optimizer], groups: dict[str, Any], **options: Any
    ) -> Optimizer:
        return kind(param_groups(model, **groups), **options)


def optimizer(
    kind: Callable[..., Optimizer] = AdamW, *, lr: float, **options: Any
) -> tuple[type[GroupedOptimizer], dict[str, Any]]:
    """Trainer's ``optimizer_cls_and_kwargs``::

        trainer = Trainer(
            model=model,
            ...,
            optimizer_cls_and_kwargs=pytl.integrations.hf.optimizer(lr=2e-5, sp_decay=1e-2, direction="dtnh"),
        )

    The new head is what the checkpoint lacked, where ``head`` does not name it. Trainer's own ``learning_rate`` and
    ``weight_decay`` do not reach an optimizer that is given this way; its schedulers do.

    A run that is resumed without the optimizer's state (``save_only_model=True``) warns: the weights of then would be
    the starting point. For that, trainers that are made after this call have a `ResumeCallback`.

    Args:
        kind: ``pytl.AdamW``, ``pytl.SGD``, or another optimizer.
        lr: learning rate.
        options: of ``pytl.param_groups`` (head, transfer, head_lr, layer_decay, sp_decay, weight_decay, ...), and of
            the optimizer (direction, betas, momentum, ...).

    Raises:
        TypeError: an option that neither has.
    """
    ours = inspect.signature(param_groups).parameters.keys() - {"model", "lr"}
    known = inspect.signature(kind).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if unknown := [name for name in options if name not in ours and name not in known and not open_ended]:
        raise TypeError(f"options must be param_groups' or {kind.__name__}'s; got {', '.join(unknown)}")
    groups = {name: value for name, value in options.items() if name in ours}
    if {"head_lr", "layer_decay"} & groups.keys():
        groups["lr"] = lr
    rest = {name: value for name, value in options.items() if name not in ours}
    if ResumeCallback not in _trainer.DEFAULT_CALLBACKS:
        _trainer.DEFAULT_CALLBACKS.append(ResumeCallback)
    return GroupedOptimizer, {"kind": kind, "groups": groups, "lr": lr, **rest}


class ResumeCallback(_callbacks.TrainerCallback):  # type: ignore[name-defined, misc]
    """Warns where a resumed run has lost its starting point: what it has learned so far would be held as if it were the
    source's."""

    def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Optimizer, **kwargs: Any) -> None:
        """After the checkpoint was loaded."""
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's has the real one inside
        if state.global_step and isinstance(inner, PytlOptimizer) and not inner.knows_start:
            warnings.warn(
                f"resumed at step {state.global_step} without the optimizer's state: the weights of now become the "
                "starting point of L2-SP; give start= with the weights that training began with, or save the optimizer "
                "(save_only_model=False)",
                stacklevel=2,
            )


class PenaltyTrainer(_trainer.Trainer):  # type: ignore[name-defined, misc]
    """Trainer with a penalty beside its loss, joined by the optimizer's direction where that has one::

        delta = pytl.DELTA(model, ["bert.encoder.layer.11"])
        trainer = PenaltyTrainer(
            model=model,
            ...,
            penalty=delta,
            optimizer_cls_and_kwargs=pytl.integrations.hf.optimizer(lr=2e-5, direction="dtnh"),
        )

    The penalty counts in training alone, as a mean over the micro-batches of a step. An ``"ids"`` among the inputs is
    the samples' ids, for a cached source (with ``remove_unused_columns=False``).

    Args:
        penalty: a regulariser made for the model; not closed.
        args, options: as Trainer has them.
    """

    def __init__(self, *args: Any, penalty: Penalty, **options: Any) -> None:
        super().__init__(*args, **options)
        self.penalty = penalty

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's loss, with the penalty's value where no direction joins the gradients."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        called = {"ids": inputs.pop("ids", None), **{k: value for k, value in inputs.items() if k != "labels"}}
        self.penalty.prepare(**called)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        value, micro_batches = self.penalty(**called), self.current_gradient_accumulation_steps
        inner = getattr(self.optimizer, "optimizer", self.optimizer)  # Accelerate's has the real one inside
        if isinstance(inner, PytlOptimizer) and inner.directs:
            inner.take_penalty(value / micro_batches, self.accelerator.scaler)
        else:
            loss = loss + (value / micro_batches if self._is_whole(num_items_in_batch) else value)
        return (loss, outputs) if return_outputs else loss

    def _is_whole(self, num_items_in_batch: Any) -> bool:
        """Whether Trainer leaves the loss as it is, and does not divide it by the number of micro-batches."""
        if self.loss_is_scaled_for_ga is not None:
            return bool(self.loss_is_scaled_for_ga)
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(counted or self.compute_loss_func is not None)


class RIFLECallback(AttachedRIFLE, _callbacks.TrainerCallback):  # type: ignore[name-defined, misc]
    """Re-initialises the head at the end of each period but the last (Li et al. 2020, arXiv:2007.03349).

    The head's cyclic rate needs parameter groups of its own, which Trainer's default optimizer does not make::

        trainer = Trainer(
            model=model,
            ...,
            optimizer_cls_and_kwargs=pytl.integrations.hf.optimizer(lr=2e-5),
            callbacks=[pytl.integrations.hf.RIFLECallback(periods=3)],
        )

    With Trainer's own optimizer: ``RIFLECallback(periods=3, cyclic_lr=False)``. A run that is resumed from a checkpoint
    goes on in its period.

    Args:
        head: the module to re-initialise, its name in the model, or several; None: found.
        periods: into which the run is cut; 1 changes nothing.
        whole_epochs: periods end with an epoch; False: wherever they end.
        options: of `pytl.RIFLE`: lr, cyclic_lr, reset_state, init, seed.

    Attributes:
        rifle: None until training begins.

    Raises:
        TypeError: an option that RIFLE lacks, or that the trainer gives.
        ValueError: when training begins, before a step: as `pytl.RIFLE`; a checkpoint of a run that was cut otherwise;
            ``whole_epochs`` with a loader that has no length.
    """

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        train_dataloader: Any,
        **kwargs: Any,
    ) -> None:
        """After the checkpoint was loaded; Trainer counts steps of the optimizer, not micro-batches."""
        epoch = _steps_per_epoch(train_dataloader, args.gradient_accumulation_steps) if self.whole_epochs else None
        saved = state.stateful_callbacks.get(_KEY)
        rifle = self._attach(model, optimizer, state.max_steps, epoch, state.global_step, saved)
        state.stateful_callbacks[_KEY] = rifle.state_dict()  # its steps are Trainer's, which are saved beside it

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A scheduler of metrics steps after the evaluation, which comes after `on_step_end`."""
        assert self.rifle
        self.rifle.set_rates()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the optimizer's and the scheduler's step, before a checkpoint is saved."""
        assert self.rifle
        self.rifle.step()


class RecorderCallback(AttachedRecorder, _callbacks.TrainerCallback):  # type: ignore[name-defined, misc]
    """Writes cheap measures to ``metrics.jsonl`` each so many steps, see `pytl.Recorder`::

        trainer = Trainer(model=model, ..., callbacks=[pytl.integrations.hf.RecorderCallback(every=10)])

    Trainer shows its callbacks no loss: lines are without. A resumed run goes on in the same file. Memory: a copy of
    the weights from the moment the trainer is made.

    Args:
        every: steps of the optimizer between lines.
        out: the folder of ``metrics.jsonl``; None: Trainer's ``output_dir``.
        head, tensorboard, capacity: of `pytl.Recorder`.

    Raises:
        ValueError: when training begins: as `pytl.Recorder`; a resumed run, and the callback was added later.
    """

    def on_init_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        self._keep_start(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, optimizer: Optimizer, **kwargs: Any
    ) -> None:
        """After the checkpoint was loaded; Accelerate's optimizer has the real one inside."""
        inner, first = getattr(optimizer, "optimizer", optimizer), state.is_world_process_zero
        self._record(model, inner, Path(args.output_dir), state.global_step, first=first)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the step, before gradients are dropped."""
        if self.recorder:
            self.recorder.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.recorder:
            self.recorder.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.recorder:
            self.recorder.close()


def _steps_per_epoch(loader: Any, accumulated: int) -> int:
    try:
        return -(-len(loader) // accumulated)
    except TypeError:  # of a stream's loader, which has a __len__ nevertheless
        raise ValueError("whole_epochs needs a loader of known length; got one without") from None
