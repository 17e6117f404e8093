"""RIFLE and the recorder in Lightning's Trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pytl.extras import require
from pytl.integrations.attached import AttachedRecorder, AttachedRIFLE

_callbacks = require("lightning.pytorch.callbacks", "lightning")


class RIFLECallback(AttachedRIFLE, _callbacks.Callback):  # type: ignore[name-defined, misc]
    """Re-initialises the head at the end of each period but the last (Li et al. 2020, arXiv:2007.03349).

    ::

        trainer = L.Trainer(..., callbacks=[pytl.integrations.lightning.RIFLECallback(head="model.fc", periods=3)])

    The optimizer must have the head in groups of its own, as ``pytl.param_groups(self.model)`` makes them in
    ``configure_optimizers``, or ``cyclic_lr=False``. A run that is resumed with ``ckpt_path`` goes on in its period.

    Args:
        head: the module to re-initialise, its name in the LightningModule ("model.fc"), or several; None: found, where
            it is the LightningModule's own attribute or a Hugging Face checkpoint lacked it.
        periods: into which the run is cut; 1 changes nothing.
        whole_epochs: periods end with an epoch; False: wherever they end.
        options: of `pytl.RIFLE`: lr, cyclic_lr, reset_state, init, seed.

    Attributes:
        rifle: None until training begins.

    Raises:
        TypeError: an option that RIFLE lacks, or that the trainer gives.
        ValueError: when training begins, before a step: as `pytl.RIFLE`; several optimizers; a run without an end; a
            checkpoint of a run that was cut otherwise; ``whole_epochs`` with a loader that has no length.
    """

    _saved: dict[str, Any] | None = None

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Forgets what a validation or test has loaded: it is no checkpoint of the run that begins."""
        self._saved = None

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """After the checkpoint was loaded."""
        if len(trainer.optimizers) != 1:
            raise ValueError(f"configure_optimizers must return one optimizer; got {len(trainer.optimizers)}")
        total = trainer.estimated_stepping_batches
        if not 0 < total < math.inf:  # -1: a loader without length, and no max_steps
            raise ValueError(f"Trainer must know how many steps it takes: give it max_steps; got {total}")
        epoch = _steps_per_epoch(trainer) if self.whole_epochs else None
        self._attach(pl_module, trainer.optimizers[0], total, epoch, trainer.global_step, self._saved)

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, batch: Any, batch_idx: int) -> None:
        """Schedulers of metrics step after `on_train_batch_end`."""
        assert self.rifle
        self.rifle.set_rates()

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Once for each step of the optimizer: none while gradients accumulate, several where it is stepped by hand."""
        assert self.rifle
        while self.rifle.steps < trainer.global_step:
            self.rifle.step()

    def state_dict(self) -> dict[str, Any]:
        """RIFLE's; nothing before training begins."""
        return self.rifle.state_dict() if self.rifle else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training begins."""
        self._saved = state_dict


class RecorderCallback(AttachedRecorder, _callbacks.Callback):  # type: ignore[name-defined, misc]
    """Writes cheap measures to ``metrics.jsonl`` each so many steps, see `pytl.Recorder`::

        trainer = L.Trainer(..., callbacks=[pytl.integrations.lightning.RecorderCallback(every=10)])

    A run that is resumed with ``ckpt_path`` goes on in the same file. Memory: a copy of the weights.

    Args:
        every: steps of the optimizer between lines.
        out: the folder of ``metrics.jsonl``; None: Trainer's ``default_root_dir``.
        head, tensorboard, capacity: of `pytl.Recorder`.

    Raises:
        ValueError: when training begins: as `pytl.Recorder`; several optimizers.
    """

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Before a checkpoint is loaded."""
        if stage == "fit":
            self._keep_start(pl_module)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """After it was."""
        if len(trainer.optimizers) != 1:
            raise ValueError(f"configure_optimizers must return one optimizer; got {len(trainer.optimizers)}")
        done, first = trainer.global_step, trainer.is_global_zero
        self._record(pl_module, trainer.optimizers[0], Path(trainer.default_root_dir), done, first=first)

    def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Once for each step of the optimizer; its gradients are dropped when the next batch begins."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None and pl_module.automatic_optimization:
            loss = loss * trainer.accumulate_grad_batches  # Lightning has divided it
        while self.recorder and self.recorder.steps < trainer.global_step:
            self.recorder.step(loss)

    def on_save_checkpoint(self, trainer: Any, pl_module: nn.Module, checkpoint: Any) -> None:
        if self.recorder:
            self.recorder.flush()

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        if self.recorder:
            self.recorder.close()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        if self.recorder:
            self.recorder.close()


def _steps_per_epoch(trainer: Any) -> int:
    if not trainer.num_training_batches < math.inf:
        raise ValueError("whole_epochs needs a loader of known length; got one without")
    return -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
