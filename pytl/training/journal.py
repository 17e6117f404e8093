"""A run's folder: ``checkpoint.pt``, from which it goes on, and ``metrics.jsonl``, one record a line and epoch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytl import files
from pytl.training import checkpoint
from pytl.training.interrupt import Interrupt, Interrupted
from pytl.training.records import Record
from pytl.training.run import Hooks, Run


class Journal:
    """Trains a run and keeps it: at each epoch's end, every so many steps, and on Ctrl-C."""

    def __init__(self, run: Run, folder: Path | None, fingerprint: Mapping[str, Any]) -> None:
        self._run, self._folder, self._fingerprint = run, folder, dict(fingerprint)

    def begin(self, resume: bool) -> bool:
        """Goes on from the folder's checkpoint; False where there is none.

        Raises:
            FileExistsError: there is one, and `resume` is False.
            ResumeError: it belongs to another run; nothing was changed.
        """
        if self._folder is None:
            return False
        path = self._folder / "checkpoint.pt"
        if path.exists():
            if not resume:
                raise FileExistsError(f"{path} exists: resume it, or choose another out")
            state = checkpoint.load(path)
            checkpoint.refuse_other_run(state.pop("fingerprint", {}), self._fingerprint, path)
            self._run.load(state)
        with files.replacing(self._folder / "metrics.jsonl") as file:  # a kill may have left a line too many
            file.writelines(_line(record) for record in self._run.history)
        return path.exists()

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
        every = self._run.settings.checkpoint_every

        def after_step() -> None:
            advance()
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
            state = {"fingerprint": self._fingerprint, **self._run.state()}
            checkpoint.save(self._folder / "checkpoint.pt", state)

    def _append(self, record: Record) -> None:
        if self._folder is not None:
            with open(self._folder / "metrics.jsonl", "ab") as file:
                file.write(_line(record))


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"
