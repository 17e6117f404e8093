"""A comparison: tasks x methods x seeds, each one run of `finetune`, and what the runs show together."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from pytl import files
from pytl.data import Task, batches
from pytl.metrics import Record
from pytl.plan import TransferPlan
from pytl.study.evidence import Outcome
from pytl.study.subject import Subject, folder_name
from pytl.threads import threads
from pytl.training import checkpoint
from pytl.training.fine_tuning import Result, finetune
from pytl.training.methods import GIVEN, Method, parse_all
from pytl.training.settings import Settings

Watch = Callable[[str, int], None]

PLAN = "plan.yaml"
_EVAL_BATCH = 256  # no gradients are kept, so more fit than in training


@dataclass(frozen=True, kw_only=True)
class Study(Subject):
    """What is compared, on what, and for how long; checked when made.

    Attributes:
        methods: names as `pytl.training.methods.parse` takes them.
        out: folder of the runs, the pre-trained networks and the results.
        plan: for methods that take one: its file, or a folder with ``TASK/plan.yaml`` for each task.
        seeds: runs of each method on each task, with seeds 0, 1, ...

    The others are as in `Subject` and in `pytl.finetune`.
    """

    methods: tuple[str, ...]
    out: Path
    plan: Path | None = None
    seeds: int = 5
    epochs: int = 20
    batch_size: int = 16
    optimizer: str = "sgd"
    amp: str | None = None
    checkpoint_every: int | None = None
    snapshots: int = 0
    record: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        Settings(
            self.epochs,
            self.rate,
            amp=self.amp,
            checkpoint_every=self.checkpoint_every,
            snapshots=self.snapshots,
        )
        if self.record is not None and self.record < 1:
            raise ValueError(f"record must be >= 1; got {self.record}")
        for name in ("seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1; got {getattr(self, name)}")
        planned = [method.name for method in parse_all(self.methods) if method.plan == GIVEN]
        if (self.plan is not None) != bool(planned):
            given = "none" if self.plan is None else str(self.plan)
            asking = ", ".join(planned) or "none of the methods takes one"
            raise ValueError(f"plan must be given with a method that takes it, as plan; got {given}, and {asking}")

    @property
    def runs(self) -> int:
        return len(self.task_names) * len(set(self.methods)) * self.seeds

    def plan_for(self, task: str) -> TransferPlan:
        """The plan of a task.

        Raises:
            FileNotFoundError: there is none.
        """
        path = Path(self.plan or "")
        if not path.is_dir():
            return TransferPlan.load(path)
        found = [one for one in (path / folder_name(task) / PLAN, path / PLAN) if one.is_file()]
        if not found:
            raise FileNotFoundError(f"plan must be a file, or a folder with {folder_name(task)}/{PLAN}; got {path}")
        return TransferPlan.load(found[0])


@dataclass(frozen=True)
class _Job:
    task: Task
    method: Method
    seed: int

    @property
    def label(self) -> str:
        return f"{self.task.name} {self.method.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        return Path(folder_name(self.task.name), self.method.name, f"seed-{self.seed}")


def run(study: Study, watch: Watch = lambda label, epochs: None) -> list[Outcome]:
    """Trains what is not trained yet.

    Args:
        study: what to compare.
        watch: called after each epoch trained, with the run's label and the number of epochs done in all runs.

    Raises:
        ResumeError: `out` holds another study; nothing was changed.
        ValueError: its study.json is broken.
        FileExistsError: `out` holds this study, and `study.resume` is False.
        ValueError, FileNotFoundError: the data or the model cannot be used.
    """
    tasks = {(name, seed): task for name in study.task_names for seed, task in _dealt(study, name)}
    plans = {task.name: study.plan_for(task.name) for task in tasks.values()} if study.plan else {}
    study.check()
    _claim(study)
    jobs = [_Job(tasks[key], method, key[1]) for key, method in product(tasks, parse_all(study.methods))]
    with threads(study.torch_threads):
        return [
            _train(study, job, plans.get(job.task.name), partial(_tell, watch, job.label, index * study.epochs))
            for index, job in enumerate(jobs)
        ]


def _tell(watch: Watch, label: str, done: int, record: Record) -> None:
    watch(label, done + int(record["epoch"] or 0))


def _dealt(study: Study, name: str) -> Iterator[tuple[int, Task]]:
    """The task for each seed; a folder is read once."""
    task = study.task(name, 0)
    for seed in range(study.seeds):
        yield seed, study.task(name, seed) if study.on_digits else task


def _claim(study: Study) -> None:
    """Marks `out` as this study's; more seeds, another device or another pace of saving are still this study."""
    path = files.writable_folder(study.out) / "study.json"
    plan = json.loads(json.dumps(asdict(study), default=str))
    for free in ("out", "resume", "seeds", "device", "workers", "checkpoint_every", "snapshots", "record"):
        del plan[free]
    if not path.exists():
        with files.replacing(path) as file:
            file.write(json.dumps(plan, indent=2).encode())
    elif not study.resume:
        raise FileExistsError(f"{study.out} holds a study: go on with it by --resume, or choose another --out")
    else:
        checkpoint.refuse_other_run(files.read_json(path, "out: its study.json"), plan, study.out)


def _train(study: Study, job: _Job, plan: TransferPlan | None, on_epoch: Callable[[Record], None]) -> Outcome:
    result = train(
        study,
        job.task,
        study.network(job.task, job.seed, study.out / "sources"),
        job.method,
        job.seed,
        plan=plan if job.method.plan == GIVEN else None,
        out=study.out / "runs" / job.folder,
        resume=study.resume,
        checkpoint_every=study.checkpoint_every,
        snapshots=study.snapshots,
        record=study.record,
        on_epoch=on_epoch,
    )
    return Outcome(job.task, job.method.name, job.seed, result.history)


def train(study: Study, task: Task, network: nn.Module, method: str | Method, seed: int, **options: Any) -> Result:
    """Fine-tunes a network as the study trains; `options` are further ones of `finetune`."""
    return finetune(
        network,
        batches(task.train, study.batch_size, shuffle=True, workers=study.workers),
        batches(task.test, _EVAL_BATCH, shuffle=False, workers=study.workers),
        method=method,
        optimizer=study.optimizer,
        epochs=study.epochs,
        lr=study.rate,
        head=study.head_name,
        device=study.place,
        amp=study.amp,
        seed=seed,
        progress=False,
        **options,
    )
