"""The runs that are analysed: which folders hold them, and what they were runs of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from pytl import metrics
from pytl.analysis.stages import stage_files
from pytl.data import Task
from pytl.depth import HEAD, placed
from pytl.files import read_json
from pytl.metrics import Record
from pytl.study.comparison import Study
from pytl.study.subject import folder_name
from pytl.weight_files import open_weights, read_weights, some

_SEED = re.compile(r"seed-(\d+)$")


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        task: the name of its task, ``"digits:mirrored"``.
        method, seed: as in the comparison that it is of.
        folder: with ``start.pt``, ``checkpoint.pt`` and perhaps ``snapshots/``.
        study: data, network and training of the comparison.
    """

    task: str
    method: str
    seed: int
    folder: Path
    study: Study = field(repr=False)

    def __str__(self) -> str:
        return f"{self.task} {self.method}, seed {self.seed}"

    @property
    def data(self) -> Task:
        name = self.task.removeprefix("digits:") if self.study.on_digits else self.study.data
        return _task(self.study, name, self.seed if self.study.on_digits else 0)

    def network(self, weights: Path) -> nn.Module:
        """The network with a checkpoint's weights, on the study's device, in evaluation mode."""
        network = self.study.network(self.data, self.seed, self.study.out / "sources")
        network.load_state_dict(read_weights(weights))
        return network.to(self.study.place).eval()

    @property
    def accuracy(self) -> float | None:
        """After the last epoch; None where it was not measured."""
        epochs = _epochs(self.folder)
        return epochs[-1].get("accuracy") if epochs else None

    @property
    def start(self) -> Path:
        return self.folder / "start.pt"

    @property
    def end(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def path(self) -> list[tuple[str, Path]]:
        """The weights along the way, from the start to the end: names and files."""
        return [(file.stem, file) for file in stage_files(self.folder)]


def _epochs(folder: Path) -> list[Record]:
    return [record for record in metrics.read(folder / "metrics.jsonl") if "epoch" in record]


@cache
def _task(study: Study, name: str, seed: int) -> Task:
    """A folder's images are read once for all seeds."""
    return study.task(name, seed)


@dataclass(frozen=True)
class Found:
    """What folders hold.

    Attributes:
        runs: in the order of their study, by task, method and seed.
        left_out: folder -> why.
    """

    runs: list[Run]
    left_out: dict[str, str]


def find(folders: Sequence[Path], given: Study | None = None, device: str | None = None) -> Found:
    """The runs in these folders: those of comparisons (``study.json``), runs themselves, and folders around them.

    Args:
        folders: to look in.
        given: data and network for runs that no ``study.json`` says it of.
        device: where to compute; None: a GPU if there is one.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: no run that can be analysed, with the reasons; runs of several architectures, or two of one task,
            method and seed.
    """
    runs: list[Run] = []
    left_out: dict[str, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"run must be a folder of a run or a comparison; {folder} is none")
        for path in _candidates(folder):
            try:
                run = _run(path, given, device)
            except ValueError as reason:
                left_out[str(path)] = str(reason)
                continue
            if run.folder not in [known.folder for known in runs]:
                runs.append(run)
    if not runs:
        reasons = [f"{path}: {reason}" for path, reason in left_out.items()] or ["they hold no runs"]
        raise ValueError(f"runs must be folders that can be analysed; {some(reasons)}")
    runs.sort(key=_place)
    _refuse_doubles(runs)
    _refuse_other_architectures(runs)
    return Found(runs, left_out)


def _place(run: Run) -> tuple[int, int, int]:
    """In the order of the study: by task, method and seed; what it does not name comes last."""
    names, methods = [*run.study.task_names], [*run.study.methods]
    task = run.task.removeprefix("digits:")
    return (
        names.index(task) if task in names else len(names),
        methods.index(run.method) if run.method in methods else len(methods),
        run.seed,
    )


def _candidates(folder: Path) -> Iterator[Path]:
    """Folders that are runs, or look as if they were to be."""
    marks = [*folder.rglob("metrics.jsonl"), *folder.rglob("checkpoint.pt")]
    runs = {mark.parent for mark in marks if "sources" not in mark.relative_to(folder).parts}
    yield from sorted(runs, key=lambda path: (str(path.parent), _seed_of(path)))
    if not runs:
        yield folder


def _seed_of(path: Path) -> int:
    found = _SEED.search(path.name)
    return int(found[1]) if found else 0


def _run(path: Path, given: Study | None, device: str | None) -> Run:
    """The run in a folder.

    Raises:
        ValueError: why there is none.
    """
    for name, reason in (("checkpoint.pt", "has no checkpoint"), ("start.pt", "has no start.pt: resume it once")):
        if not (path / name).exists():
            raise ValueError(reason)
    try:
        found = _study_around(path, device)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its study.json cannot be read: {error}") from error
    if found and (done := len(_epochs(path))) < found.epochs:
        raise ValueError(f"has {done} of {found.epochs} epochs: resume it")
    study = found or given
    if study is None:
        raise ValueError("has no study.json above it: say --data and --model")
    tasks = {folder_name(task.name): task.name for task in (_task(study, name, 0) for name in study.task_names)}
    named = _SEED.search(path.name)
    task = tasks.get(path.parent.parent.name, next(iter(tasks.values())) if len(tasks) == 1 else "")
    if not task:
        raise ValueError(f"is of none of the tasks {', '.join(tasks.values())}")
    return Run(task, path.parent.name if named else path.name, _seed_of(path), path, study)


def _study_around(path: Path, device: str | None) -> Study | None:
    for folder in path.resolve().parents:
        file = folder / "study.json"
        if file.exists():
            known = {one.name for one in fields(Study)}
            found = {k: v for k, v in read_json(file, "run").items() if k in known}
            plan, named = found.pop("plan", None), found.pop("methods")
            _refuse_other_types(found, plan, named)
            methods = tuple(m for m in named if plan or not m.startswith("plan")) or ("plain",)
            return Study(**found, methods=methods, out=folder, plan=None if plan is None else Path(plan), device=device)
    return None


def _refuse_other_types(found: dict[str, Any], plan: Any, methods: Any) -> None:
    """What JSON says of a study need not have the types of its attributes."""
    if not (isinstance(plan, str | None) and isinstance(methods, list) and all(isinstance(m, str) for m in methods)):
        raise ValueError("plan must be text or null, and methods a list of texts")
    hints = get_type_hints(Study)
    for name, value in found.items():
        allowed = {*get_args(hints[name])} or {hints[name]}
        if type(value) not in (allowed | {int} if float in allowed else allowed):
            raise ValueError(f"{name} must be {hints[name]}; got a {type(value).__name__}")


def _refuse_doubles(runs: Iterable[Run]) -> None:
    known: dict[str, Run] = {}
    for run in runs:
        other = known.setdefault(str(run), run)
        if other is not run:
            raise ValueError(
                f"runs must differ in task, method or seed; {run.folder} and {other.folder} are both {run}"
            )


def _refuse_other_architectures(runs: Iterable[Run]) -> None:
    """By names and shapes of all tensors but the head's, which tasks with other classes have otherwise."""
    first: tuple[Run, dict[str, torch.Size]] | None = None
    heads: set[str] | None = None
    for run in runs:
        entries, _ = open_weights(run.end, "run")
        if heads is None:
            network = run.study.network(run.data, run.seed, run.study.out / "sources")
            heads = {name for name, block in placed(network, run.study.head_name).items() if block == HEAD}
        body = {name: entry.shape for name, entry in entries.items() if name not in heads}
        if first is None:
            first = run, body
        elif body != first[1]:
            differ = sorted(n for n in {*body, *first[1]} if body.get(n) != first[1].get(n))
            raise ValueError(
                f"runs must have one architecture; {run.folder} and {first[0].folder} differ in {len(differ)} tensors: "
                f"{some(differ)}"
            )
