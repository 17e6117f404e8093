"""`search`: a problem in; the best plan that so many trials find, and all of the trials, out."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pytl.advice import Advice
from pytl.depth import HEAD
from pytl.files import replacing, writable_folder
from pytl.plan import Rules, TransferPlan
from pytl.progress import bar
from pytl.threads import threads
from pytl.trials import report
from pytl.trials.problem import Problem
from pytl.trials.space import Candidate, Space, Value
from pytl.trials.storage import Trial, Trials, check_sound, owned

_FILE = "search.db"
_SEEDS_APART = 1000  # of two workers' samplers
_WEIGHT_DECAY = _SP_DECAY = 0.03  # of plain and L2-SP, which every search tries


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        plan: the best candidate's, for the problem's network.
        best: that candidate.
        accuracy: its mean validation accuracy: that of the best of many, so higher than what it will have elsewhere.
        trials: plain values of each finished trial.
        importances: dimension -> share of the accuracies' variance that it explains; empty where too few are known.
    """

    plan: TransferPlan
    best: Candidate
    accuracy: float
    trials: list[dict[str, Any]]
    importances: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "best": asdict(self.best),
            "accuracy": self.accuracy,
            "plan": self.plan.to_dict(),
            "importances": self.importances,
            "trials": self.trials,
        }


def search(
    problem: Problem,
    out: str | Path,
    *,
    trials: int = 30,
    advice: Advice | Rules | None = None,
    workers: int = 1,
    storage: Any = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> SearchResult:
    """Searches for the plan with the highest validation accuracy, by Optuna's TPE.

    The first trials are what was advised, plain fine-tuning and L2-SP; a trial that is worse than the median of the
    others after as many splits is given up. The problem holds no test data, so none can be touched. A killed search
    goes on with ``resume``: finished trials are kept, those in progress begin anew.

    Args:
        problem: what is trained, on what, over which space.
        out: folder of ``search.db``, and of ``plan.yaml``, ``search.json``, ``report.html`` and figures in the end.
        trials: how many in all, those of earlier sessions included.
        advice: where to begin.
        workers: processes on this machine, which may begin a trial or two too many; on one GPU they share it.
        storage: a database's URL, or for one worker any of Optuna's storages, for searches on several machines, each
            with the same problem; None: SQLite in ``out``.
        resume: go on with what is in ``out``.
        seed: of the sampler.
        progress: a bar on a terminal.

    Raises:
        FileExistsError: ``out`` holds a search and ``resume`` is False.
        StorageError: the file is in use or damaged, or holds another search; it is left as it is.
        ChildProcessError: a worker did not end well; what went wrong is on its standard error.
        ImportError: Optuna is missing.
    """
    if trials < 1:
        raise ValueError(f"trials must be >= 1; got {trials}")
    if workers < 1:
        raise ValueError(f"workers must be >= 1; got {workers}")
    folder = writable_folder(out)
    path, names = folder / _FILE, problem.blocks()
    if workers > 1 and not isinstance(storage, str | None):
        raise ValueError(f"storage must be a database's URL for several workers; got a {type(storage).__name__}")
    if storage is not None:
        job = _Job(problem, tuple(names), storage, trials, seed, exclusive=False)
        return _run(job, folder, advice, workers, progress)
    if path.exists() and not resume:
        raise FileExistsError(f"{path} holds a search: go on with it by resume, or choose another out")
    with owned(path):
        check_sound(path)
        job = _Job(problem, tuple(names), f"sqlite:///{path.resolve()}", trials, seed, exclusive=True)
        return _run(job, folder, advice, workers, progress)


@dataclass(frozen=True)
class _Job:
    """What a process needs to know to work at a search."""

    problem: Problem
    names: tuple[str, ...]
    """Of the network's blocks."""
    url: Any
    count: int
    seed: int
    exclusive: bool

    @property
    def space(self) -> Space:
        return self.problem.space.within(len(self.names))

    @property
    def body(self) -> int:
        return sum(name != HEAD for name in self.names)

    def trials(self, parallel: bool) -> Trials:
        problem, digest = self.problem, self.problem.digest(self.names)
        return Trials(self.url, problem.name, digest, seed=self.seed, exclusive=self.exclusive, parallel=parallel)

    def candidate(self, values: Mapping[str, Value]) -> Candidate:
        return self.space.candidate(values, self.body, self.problem.lr)


def _run(job: _Job, folder: Path, advice: Advice | Rules | None, workers: int, progress: bool) -> SearchResult:
    kept = job.trials(parallel=workers > 1 or not job.exclusive)
    kept.begin(_first(job, advice))
    with bar(f"search {job.problem.name}", job.count, min(kept.finished, job.count), progress) as advance:
        if workers == 1:
            _work(job, kept, advance)
        else:
            _share(job, kept, workers, advance)
    result = _result(job, kept)
    result.plan.save(folder / "plan.yaml")
    with replacing(folder / "search.json") as file:
        file.write(json.dumps({"problem": job.problem.name, **result.to_dict()}, indent=2).encode())
    report.write(job.problem, result, folder)
    return result


def _first(job: _Job, advice: Advice | Rules | None) -> list[Mapping[str, Value]]:
    """What is tried first: the advice, plain fine-tuning, L2-SP."""
    advised = advice.recommendation.rules if isinstance(advice, Advice) else advice
    plain, l2sp = Rules(boundary=0, weight_decay=_WEIGHT_DECAY), Rules(sp_decay=_SP_DECAY, weight_decay=_WEIGHT_DECAY)
    first = [rules for rules in (advised, plain, l2sp) if rules is not None]
    return [job.space.nearest(rules, job.body, job.problem.lr) for rules in first]


def _work(job: _Job, kept: Trials, advance: Callable[[], None]) -> None:
    """Trials, one after another, until so many are begun."""
    problem = job.problem

    def judge(trial: Trial) -> None:
        candidate = job.candidate(trial.values)
        trial.stands_for(json.dumps(asdict(candidate)))
        for split in problem.splits[len(trial.accuracies) :]:
            trial.add(problem.accuracy(candidate, split), last=split is problem.splits[-1])
            if trial.pruned:
                break

    with threads(problem.threads):
        while kept.begun < job.count:
            kept.run(job.space, judge)
            advance()


def _share(job: _Job, kept: Trials, workers: int, advance: Callable[[], None]) -> None:
    """Several processes work at one storage; none outlives this one."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, and hang
    jobs = [replace(job, seed=job.seed + _SEEDS_APART * index) for index in range(workers)]
    processes = [context.Process(target=_worker, args=(one,)) for one in jobs]
    try:
        for process in processes:
            process.start()
        _watch(processes, kept, advance)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise ChildProcessError(f"workers must end well; {len(failed)} of {workers} did not (exit status {failed[0]})")


def _watch(processes: Sequence[BaseProcess], kept: Trials, advance: Callable[[], None]) -> None:
    """Until all have ended."""
    told = kept.finished
    while alive := [process.sentinel for process in processes if process.is_alive()]:
        connection.wait(alive, timeout=1.0)
        finished = kept.finished
        for _ in range(finished - told):
            advance()
        told = finished


def _worker(job: _Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work(job, job.trials(parallel=True), lambda: None)


def _end_with_parent() -> None:
    """A killed search leaves nobody at work behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _result(job: _Job, kept: Trials) -> SearchResult:
    done = kept.done()
    best = max((trial for trial in done if trial["state"] == "complete"), key=lambda trial: trial["value"])
    candidate = job.candidate(best["values"])
    return SearchResult(candidate.plan(job.names), candidate, float(best["value"]), done, kept.importances())
