"""A run's folder: ``start.pt`` and ``checkpoint.pt``, weights on the way, and ``metrics.jsonl``, the run in numbers."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytl import metrics
from pytl.metrics import Record
from pytl.training import checkpoint
from pytl.training.interrupt import Interrupt, Interrupted
from pytl.training.run import Hooks, Run


class Journal:
    """Trains a run and keeps it: at each epoch's end, every so many steps, and on Ctrl-C."""

    def __init__(self, run: Run, folder: Path | None, fingerprint: Mapping[str, Any]) -> None:
        self._run, self._folder, self._fingerprint = run, folder, dict(fingerprint)
        self._recorder = run.parts.recorder

    def begin(self, resume: bool) -> bool:
        """Goes on from the folder's checkpoint; False where there is none.

        Raises:
            FileExistsError: there is one, and `resume` is False.
            ResumeError: it belongs to another run; nothing was changed.
        """
        if self._folder is None:
            return False
        path, start = self._folder / "checkpoint.pt", self._folder / "start.pt"
        if path.exists() and not resume:
            raise FileExistsError(f"{path} exists: resume it, or choose another out")
        if path.exists():
            state = checkpoint.load(path)
            checkpoint.refuse_other_run(state.pop("fingerprint", {}), self._fingerprint, path)
        if not (path.exists() and start.exists()):
            checkpoint.save(start, self._run.parts.model.state_dict())
        if path.exists():
            self._run.load(state)
        if self._recorder:
            self._recorder.steps = self._run.steps_done
        self._take_back()
        return path.exists()

    def _take_back(self) -> None:
        """Leaves those lines that the checkpoint knows of: a kill may have left more, or one too few."""
        assert self._folder is not None
        path, history = self._folder / "metrics.jsonl", [*self._run.history]
        try:
            found = metrics.read(path)
        except ValueError as error:
            warnings.warn(f"recorded steps are lost, epochs are kept: {error}", RuntimeWarning, stacklevel=2)
            found = []
        kept: list[Record] = []
        for record in found:
            if "step" not in record:
                kept += history[:1]
                del history[:1]
            elif (record["step"] or 0) <= self._run.steps_done:
                kept.append(record)
        metrics.rewrite(path, [*kept, *history])

    def fit(self, advance: Callable[[], None], on_epoch: Callable[[Record], None] | None) -> None:
        """Trains to the end.

        Raises:
            Interrupted: Ctrl-C was pressed; the state is saved.
        """
        if self._folder is None:
            return self._run.fit(self._hooks(advance, on_epoch))
        try:
            with Interrupt() as interrupt:
                self._run.fit(self._hooks(advance, on_epoch, interrupt.check))
        except Interrupted:
            self._save()
            raise Interrupted(f"stopped in epoch {len(self._run.history) + 1}, saved to {self._folder}") from None
        return None

    def _hooks(
        self,
        advance: Callable[[], None],
        on_epoch: Callable[[Record], None] | None,
        check: Callable[[], None] = lambda: None,
    ) -> Hooks:
        every, snapshots = self._run.settings.checkpoint_every, self._run.snapshots

        def after_step() -> None:
            advance()
            if self._run.steps_done in snapshots:
                self._save_weights()
            if every and not self._run.between_epochs and self._run.steps_done % every == 0:
                self._save()

        def after_epoch(record: Record) -> None:
            self._save()
            self._append(record)
            if on_epoch:
                on_epoch(record)

        return Hooks(after_step, check, after_epoch)

    def _save(self) -> None:
        if self._folder is not None:
            if self._recorder:
                self._recorder.flush()
            state = {"fingerprint": self._fingerprint, **self._run.state()}
            checkpoint.save(self._folder / "checkpoint.pt", state)

    def _save_weights(self) -> None:
        if self._folder is not None:
            folder = self._folder / "snapshots"
            folder.mkdir(exist_ok=True)
            checkpoint.save(folder / f"step-{self._run.steps_done:06d}.pt", self._run.parts.model.state_dict())

    def _append(self, record: Record) -> None:
        if self._folder is not None:
            metrics.append(self._folder / "metrics.jsonl", [record])
