"""What a trainer's callbacks do: options first, the optimizer and the number of steps when training begins."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from pytl import files
from pytl.architecture import Head, unwrapped
from pytl.optim.sharding import is_sharded
from pytl.recorder import Recorder
from pytl.rifle import RIFLE

_OF_THE_TRAINER = ("head", "optimizer", "total_steps", "periods", "steps_per_epoch", "model")
_OPTIONS = [name for name in inspect.signature(RIFLE).parameters if name not in _OF_THE_TRAINER]


class AttachedRIFLE:
    """The part of a callback that knows no trainer.

    Args:
        head: the module to re-initialise, its name in the model, or several; None: found.
        periods: into which the run is cut.
        whole_epochs: periods end with an epoch; False: wherever they end.
        options: of `pytl.RIFLE`: lr, cyclic_lr, reset_state, init, seed.

    Attributes:
        rifle: None until training begins.

    Raises:
        TypeError: an option that RIFLE lacks, or that the trainer gives.
    """

    def __init__(
        self, head: Head | None = None, periods: int = 3, *, whole_epochs: bool = False, **options: Any
    ) -> None:
        if unknown := [name for name in options if name not in _OPTIONS]:
            raise TypeError(f"options must be among {', '.join(_OPTIONS)}; got {', '.join(unknown)}")
        self.head, self.periods, self.whole_epochs, self.options = head, periods, whole_epochs, options
        self.rifle: RIFLE | None = None

    def _attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        total_steps: int,
        steps_per_epoch: int | None,
        done: int,
        saved: dict[str, Any] | None,
    ) -> RIFLE:
        """A RIFLE that has taken `done` steps, with the rates that a checkpoint saved.

        Raises:
            ValueError: as `pytl.RIFLE`; or the checkpoint is of a run that was cut otherwise.
        """
        rifle = RIFLE(
            self.head,
            optimizer,
            total_steps,
            self.periods,
            steps_per_epoch=steps_per_epoch,
            model=model,
            **self.options,
        )
        rifle.load_state_dict({**rifle.state_dict(), **(saved or {}), "steps": done})
        self.rifle = rifle
        return rifle


class AttachedRecorder:
    """The part of a recording callback that knows no trainer.

    Args:
        every: steps between lines.
        out: the folder of ``metrics.jsonl``; None: the trainer's own.
        head, tensorboard, capacity: of `pytl.Recorder`.

    Attributes:
        recorder: None until training begins, and on all processes but the first where parameters are whole.
    """

    def __init__(
        self,
        every: int = 10,
        *,
        out: str | Path | None = None,
        head: Head | None = None,
        tensorboard: str | Path | None = None,
        capacity: int = 256,
    ) -> None:
        self.every, self.out = every, None if out is None else Path(out)
        self.options: dict[str, Any] = {"head": head, "tensorboard": tensorboard, "capacity": capacity}
        self.recorder: Recorder | None = None
        self._start: dict[str, Tensor] | None = None

    def _keep_start(self, model: nn.Module) -> None:
        """Before a checkpoint is loaded, which would pass for the start."""
        self._start = {name: p.detach().clone() for name, p in unwrapped(model).named_parameters()}

    def _record(self, model: nn.Module, optimizer: Optimizer, folder: Path, done: int, *, first: bool) -> None:
        """Begins, or goes on after `done` steps; the first process writes, the others help where they have parts.

        Raises:
            ValueError: as `pytl.Recorder`; or the run is resumed and its starting weights were not seen.
        """
        if self._start is None and done:
            raise ValueError("the callback must be given when the trainer is made, to see where a resumed run started")
        if not first and not any(is_sharded(p) for p in model.parameters()):
            return
        path = files.writable_folder(self.out or folder) / "metrics.jsonl" if first else None
        self.recorder = Recorder(model, optimizer, path, every=self.every, start=self._start, **self.options)
        self.recorder.go_on(done)
        self._start = None
