"""A search's trials, kept by Optuna: begun, resumed after a kill, and shared by several processes."""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pytl.extras import require
from pytl.trials.space import Space, Value

_SPLIT, _CANDIDATE, _DIGEST = "accuracies", "candidate", "problem"
_PATIENCE = 60  # seconds that a process waits for another one's write
_HEARTBEAT = 60  # seconds; without three of them a trial on another machine is taken for dead
_STARTUP = 10  # trials drawn at random, before the sampler has something to go by


class StorageError(OSError):
    """The storage file is in use, damaged, or of another search; it is left as it is."""


@contextmanager
def _reading(storage: Any) -> Iterator[None]:
    """Raises StorageError with the storage's name for whatever is met in reading it.

    Of a damaged value SQLAlchemy and Optuna raise anything: LookupError, ValueError, TypeError, errors of their own.
    """
    try:
        yield
    except (StorageError, ImportError):
        raise
    except Exception as error:
        raise StorageError(f"{_named(storage)} cannot be read, and is left as it is: {error!r}") from error


def _named(storage: Any) -> str:
    """Without the user and the password of a database's URL."""
    return re.sub(r"//[^/@]*@", "//", storage) if isinstance(storage, str) else type(storage).__name__


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Within it the storage file is this search's alone: what was running before is known to be dead.

    Raises:
        StorageError: another search has it.
    """
    with open(path.with_name(f".{path.name}.lock"), "a+") as file:
        _lock(file, path)
        yield


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise StorageError(f"{path} is in use by another search (process {file.read().strip() or 'unknown'})") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def check_sound(path: Path) -> None:
    """Raises StorageError for a file that SQLite cannot read; what is not there yet is sound."""
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            problems = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeDecodeError) as error:  # what is damaged may be named in bytes that are no text
        raise StorageError(f"{path} is damaged or no SQLite file, and is left as it is: {error}") from error
    if problems != ["ok"]:
        raise StorageError(f"{path} is damaged and is left as it is: {problems[0]}")


class Trials:
    """The trials of one search in an Optuna storage.

    Args:
        storage: a database's URL, or any of Optuna's storages; several machines may share it.
        name: of the problem; a database may hold several.
        digest: of the problem, so that another one's trials are refused.
        seed: of the sampler.
        exclusive: nobody else is at work: trials that are running were killed, and will be run again.
        parallel: others are at work meanwhile.

    Raises:
        StorageError: it holds another search, or cannot be read; so do all that read it.
    """

    def __init__(self, storage: Any, name: str, digest: str, *, seed: int, exclusive: bool, parallel: bool) -> None:
        self._optuna = require("optuna", "search")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._name, self._exclusive, self._storage = f"pytl {name}", exclusive, storage
        with _reading(storage):
            self._study = self._open(storage, seed, parallel)
            self._refuse_other(digest)

    def _open(self, storage: Any, seed: int, parallel: bool) -> Any:
        optuna = self._optuna
        if not isinstance(storage, str):
            return self._study_in(storage, seed, parallel)
        patience = {"connect_args": {"timeout": _PATIENCE}} if storage.startswith("sqlite") else None
        beats = {} if self._exclusive else {"heartbeat_interval": _HEARTBEAT, "grace_period": 3 * _HEARTBEAT}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            kept = optuna.storages.RDBStorage(storage, engine_kwargs=patience, **beats)
        return self._study_in(kept, seed, parallel)

    def _study_in(self, kept: Any, seed: int, parallel: bool) -> Any:
        optuna = self._optuna
        study = optuna.create_study(study_name=self._name, storage=kept, direction="maximize", load_if_exists=True)
        done = len(study.trials)  # a resumed sampler must not draw again what it drew before
        sampler = optuna.samplers.TPESampler(
            seed=seed + done, multivariate=True, n_startup_trials=_STARTUP, constant_liar=parallel
        )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
        return optuna.load_study(study_name=self._name, storage=kept, sampler=sampler, pruner=pruner)

    def _refuse_other(self, digest: str) -> None:
        kept = self._study.user_attrs.get(_DIGEST)
        if kept is None:
            self._study.set_user_attr(_DIGEST, digest)
        elif kept != digest:
            raise StorageError(f"{_named(self._storage)} holds the trials of another search, and is left as it is")

    def begin(self, first: Sequence[Mapping[str, Value]]) -> None:
        """Queues what is tried first, and again what a kill interrupted; where others are at work, what is stale."""
        with _reading(self._storage):
            self._begin(first)

    def _begin(self, first: Sequence[Mapping[str, Value]]) -> None:
        states, study = self._optuna.trial.TrialState, self._study
        if self._exclusive:
            for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
                study.tell(trial.number, state=states.FAIL)
                study.enqueue_trial(_wanted(trial))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                self._optuna.storages.fail_stale_trials(study)
        known = [_wanted(trial) for trial in study.get_trials(deepcopy=False) if trial.state != states.FAIL]
        for values in first:
            if values not in known:
                study.enqueue_trial(dict(values))
                known.append(dict(values))

    @property
    def finished(self) -> int:
        return len(self._done())

    @property
    def begun(self) -> int:
        """Finished ones, and those that somebody is at work on."""
        states = self._optuna.trial.TrialState
        with _reading(self._storage):
            return len(self._study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.RUNNING)))

    def _done(self) -> list[Any]:
        states = self._optuna.trial.TrialState
        with _reading(self._storage):
            return list(self._study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))

    def run(self, space: Space, judge: Callable[[Trial], None]) -> None:
        """One more trial: ``judge`` is given its values, and says what came of them."""

        def objective(trial: Any) -> float:
            values = {name: trial.suggest_categorical(name, list(of)) for name, of in space.dimensions.items()}
            own = Trial(self, trial, values)
            judge(own)
            if own.pruned:
                raise self._optuna.TrialPruned
            return own.mean

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            self._study.optimize(objective, n_trials=1)

    def done(self) -> list[dict[str, Any]]:
        """Plain values of each finished trial, in their order."""
        with _reading(self._storage):
            return [_plain(trial) for trial in self._done()]

    def importances(self) -> dict[str, float]:
        """The share of the values' variance that each dimension explains (fANOVA); empty where too few are known.

        Trials that were given up count with the mean they had: without them only good values would be compared.
        """
        optuna = self._optuna
        judged = optuna.create_study(direction="maximize")
        for trial in self._done():
            if accuracies := trial.user_attrs.get(_SPLIT):
                value, drawn = sum(accuracies) / len(accuracies), trial.distributions
                judged.add_trial(optuna.trial.create_trial(params=trial.params, distributions=drawn, value=value))
        try:
            found = optuna.importance.get_param_importances(judged)
        except (ValueError, RuntimeError):  # one trial alone, or all of one value
            return {}
        return {name: float(value) for name, value in found.items()}


def _plain(trial: Any) -> dict[str, Any]:
    return {
        "number": trial.number,
        "values": dict(trial.params),
        "value": trial.value,
        "state": trial.state.name.lower(),
        "accuracies": trial.user_attrs.get(_SPLIT, []),
        "candidate": trial.user_attrs.get(_CANDIDATE, ""),
        "seconds": trial.duration.total_seconds() if trial.duration else None,
    }


def _wanted(trial: Any) -> dict[str, Value]:
    """The values that a trial has, or was queued with."""
    return dict(trial.params or trial.system_attrs.get("fixed_params", {}))


class Trial:
    """One trial in progress.

    Attributes:
        values: of each dimension.
        accuracies: by split, as far as it got.
        pruned: it was given up.
    """

    def __init__(self, trials: Trials, trial: Any, values: dict[str, Value]) -> None:
        self._trials, self._trial, self.values = trials, trial, values
        self.accuracies: list[float] = []
        self.pruned = False

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)

    def stands_for(self, candidate: str) -> None:
        """Says what the values mean; takes over the accuracies of a finished trial of the same candidate."""
        self._trial.set_user_attr(_CANDIDATE, candidate)
        whole = [one for one in self._trials.done() if one["state"] == "complete" and one["candidate"] == candidate]
        if whole:
            self.accuracies = [*whole[0]["accuracies"]]
            self._trial.set_user_attr(_SPLIT, self.accuracies)

    def add(self, accuracy: float, *, last: bool) -> None:
        """Of one more split; the trial may be given up then, unless it was the last."""
        self.accuracies.append(accuracy)
        self._trial.set_user_attr(_SPLIT, self.accuracies)
        self._trial.report(self.mean, len(self.accuracies))
        self.pruned = not last and self._trial.should_prune()
