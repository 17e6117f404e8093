"""`search`: a problem in; the best plan that so many trials find, and all of the trials, out."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pytl.advice import Advice
from pytl.files import replacing, writable_folder
from pytl.plan import Rules, TransferPlan
from pytl.progress import bar
from pytl.search import report
from pytl.search.problem import Problem, use_threads
from pytl.search.space import Candidate, Value
from pytl.search.trials import Trial, Trials, check_sound, owned

_FILE = "search.db"
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
    storage: str | None = None,
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
        storage: a database's URL for searches on several machines, each with the same problem; None: SQLite in ``out``.
        resume: go on with what is in ``out``.
        seed: of the sampler.
        progress: a bar on a terminal.

    Raises:
        FileExistsError: ``out`` holds a search and ``resume`` is False.
        StorageError: the file is in use or damaged, or holds another search; it is left as it is.
        ImportError: Optuna is missing.
    """
    if trials < 1:
        raise ValueError(f"trials must be >= 1; got {trials}")
    if workers < 1:
        raise ValueError(f"workers must be >= 1; got {workers}")
    folder = writable_folder(out)
    path = folder / _FILE
    names = problem.blocks()
    if storage is not None:
        return _run(problem, names, folder, storage, advice, trials, workers, seed, progress, exclusive=False)
    if path.exists() and not resume:
        raise FileExistsError(f"{path} holds a search: go on with it by resume, or choose another out")
    with owned(path):
        check_sound(path)
        url = f"sqlite:///{path.resolve()}"
        return _run(problem, names, folder, url, advice, trials, workers, seed, progress, exclusive=True)


def _run(
    problem: Problem,
    names: Sequence[str],
    folder: Path,
    url: str,
    advice: Advice | Rules | None,
    count: int,
    workers: int,
    seed: int,
    progress: bool,
    *,
    exclusive: bool,
) -> SearchResult:
    digest = problem.digest(names)
    kept = Trials(url, problem.name, digest, seed=seed, exclusive=exclusive, parallel=workers > 1 or not exclusive)
    kept.begin(_first(problem, names, advice))
    with bar(f"search {problem.name}", count, min(kept.finished, count), progress) as advance:
        if workers == 1:
            _work(problem, names, kept, count, advance)
        else:
            _share(problem, names, kept, (url, digest, count, seed), workers, advance)
    result = _result(problem, names, kept)
    result.plan.save(folder / "plan.yaml")
    with replacing(folder / "search.json") as file:
        file.write(json.dumps({"problem": problem.name, **result.to_dict()}, indent=2).encode())
    report.write(problem, result, folder)
    return result


def _first(problem: Problem, names: Sequence[str], advice: Advice | Rules | None) -> list[Mapping[str, Value]]:
    """What is tried first: the advice, plain fine-tuning, L2-SP."""
    space, body = problem.space.within(len(names)), problem.body(names)
    advised = advice.recommendation.rules if isinstance(advice, Advice) else advice
    plain, l2sp = Rules(boundary=0, weight_decay=_WEIGHT_DECAY), Rules(sp_decay=_SP_DECAY, weight_decay=_WEIGHT_DECAY)
    return [space.nearest(rules, body, problem.lr) for rules in (advised, plain, l2sp) if rules is not None]


def _work(problem: Problem, names: Sequence[str], kept: Trials, count: int, advance: Callable[[], None]) -> None:
    """Trials, one after another, until so many are begun."""
    space, body = problem.space.within(len(names)), problem.body(names)
    use_threads(problem.threads)

    def judge(trial: Trial) -> None:
        candidate = space.candidate(trial.values, body, problem.lr)
        trial.stands_for(json.dumps(asdict(candidate)))
        for split in problem.splits[len(trial.accuracies) :]:
            trial.add(problem.accuracy(candidate, split), last=split is problem.splits[-1])
            if trial.pruned:
                break

    while kept.begun < count:
        kept.run(space, judge)
        advance()


def _share(
    problem: Problem,
    names: Sequence[str],
    kept: Trials,
    work: tuple[str, str, int, int],
    workers: int,
    advance: Callable[[], None],
) -> None:
    """Several processes work at one storage; none outlives this one."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, and hang
    url, digest, count, seed = work
    processes = [
        context.Process(target=_worker, args=(problem, names, url, digest, count, seed + 1000 * index))
        for index in range(workers)
    ]
    try:
        for process in processes:
            process.start()
        _watch(processes, kept, advance)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"workers must end well; {len(failed)} of {workers} did not (exit status {failed[0]})")


def _watch(processes: Sequence[BaseProcess], kept: Trials, advance: Callable[[], None]) -> None:
    """Until all have ended."""
    told = kept.finished
    while alive := [process.sentinel for process in processes if process.is_alive()]:
        connection.wait(alive, timeout=1.0)
        finished = kept.finished
        for _ in range(finished - told):
            advance()
        told = finished


def _worker(problem: Problem, names: Sequence[str], url: str, digest: str, count: int, seed: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    kept = Trials(url, problem.name, digest, seed=seed, exclusive=True, parallel=True)
    _work(problem, names, kept, count, lambda: None)


def _end_with_parent() -> None:
    """A killed search leaves nobody at work behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _result(problem: Problem, names: Sequence[str], kept: Trials) -> SearchResult:
    done = kept.done()
    whole = [trial for trial in done if trial["value"] is not None and trial["state"] == "complete"]
    best = max(whole, key=lambda trial: trial["value"])  # of several alike the first
    space = problem.space.within(len(names))
    candidate = space.candidate(best["values"], problem.body(names), problem.lr)
    return SearchResult(candidate.plan(names), candidate, float(best["value"]), done, kept.importances())
