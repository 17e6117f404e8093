"""A comparison: tasks x methods x seeds, each one run of `finetune`, and what the runs show together."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

from pytl import files
from pytl.data import Task, batches, digits, image_folder
from pytl.study import networks
from pytl.study.evidence import Outcome
from pytl.training import checkpoint
from pytl.training.fine_tuning import finetune
from pytl.training.methods import Method, parse_all
from pytl.training.records import Record
from pytl.training.settings import Settings

Maker = Callable[[int], nn.Module]
Watch = Callable[[str, int], None]

_EVAL_BATCH = 256  # no gradients are kept, so more fit than in training


@dataclass(frozen=True)
class Study:
    """What is compared, on what, and for how long; checked when made.

    Attributes:
        data: ``"digits"`` (all its tasks), ``"digits:TASK"``, or a folder of class folders of images.
        methods: names as `pytl.training.methods.parse` takes them.
        out: folder of the runs, the pre-trained networks and the results.
        model: ``"module:function"`` or a local Hugging Face folder; None for digits.
        seeds: runs of each method on each task, with seeds 0, 1, ...
        lr: learning rate at the start; None: 0.03 on digits (benchmarks/tune_digits.py), else `finetune`'s 0.01.
        share: of the digits' target images that is trained on.
        head: name of the model's new head; None: found.
        device: where to train; None: a GPU if there is one.

    The others are as in `pytl.finetune`.
    """

    data: str
    methods: tuple[str, ...]
    out: Path
    model: str | None = None
    seeds: int = 5
    epochs: int = 20
    lr: float | None = None
    batch_size: int = 16
    optimizer: str = "sgd"
    share: float = 0.15
    image_size: int = 224
    workers: int = 0
    head: str | None = None
    device: str | None = None
    amp: str | None = None
    checkpoint_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        Settings(self.epochs, self.rate, amp=self.amp, checkpoint_every=self.checkpoint_every)
        parse_all(self.methods)
        for name, least in (("seeds", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}; got {getattr(self, name)}")
        if self.on_digits and self.model:
            raise ValueError(f"model must be left out for digits, which bring their own; got {self.model!r}")
        if not self.on_digits and not self.model:
            raise ValueError("model must be given for a folder of images: module:function or a Hugging Face folder")

    @property
    def on_digits(self) -> bool:
        return self.data.partition(":")[0] == "digits"

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        return (0.03 if self.on_digits else 0.01) if self.lr is None else self.lr

    @property
    def task_names(self) -> tuple[str, ...]:
        """For folders the folder itself."""
        if not self.on_digits:
            return (self.data,)
        name = self.data.partition(":")[2]
        return (name,) if name else digits.TASKS

    @property
    def runs(self) -> int:
        return len(self.task_names) * len(set(self.methods)) * self.seeds


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
        return Path(self.task.name.replace(":", "-"), self.method.name, f"seed-{self.seed}")


def run(study: Study, watch: Watch = lambda label, epochs: None) -> list[Outcome]:
    """Trains what is not trained yet.

    Args:
        study: what to compare.
        watch: called after each epoch trained, with the run's label and the number of epochs done in all runs.

    Raises:
        ResumeError: `out` holds another study; nothing was changed.
        FileExistsError: `out` holds this study, and `study.resume` is False.
        ValueError, FileNotFoundError: the data or the model cannot be used.
    """
    tasks = {(name, seed): task for name in study.task_names for seed, task in _dealt(study, name)}
    make = None if study.model is None else networks.from_name(study.model)
    _check_device(study.device)
    _claim(study)
    jobs = [_Job(tasks[key], method, key[1]) for key, method in product(tasks, parse_all(study.methods))]
    with _threads(1 if study.on_digits else torch.get_num_threads()):
        return [
            _train(study, job, make, partial(_tell, watch, job.label, index * study.epochs))
            for index, job in enumerate(jobs)
        ]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """For images of 8x8 one: a second thread has nothing to do, and waiting for it costs, tenfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tell(watch: Watch, label: str, done: int, record: Record) -> None:
    watch(label, done + int(record["epoch"] or 0))


def _dealt(study: Study, name: str) -> Iterator[tuple[int, Task]]:
    """The task for each seed; digits are dealt anew, a folder's split is one for all."""
    if study.on_digits:
        yield from ((seed, digits.load(name, seed, study.share)) for seed in range(study.seeds))
    else:
        task = image_folder.load(name, networks.preparation(study.model or "", study.image_size))
        yield from ((seed, task) for seed in range(study.seeds))


def _check_device(name: str | None) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an unknown name, or a torch built without that device
        raise ValueError(f"device must be one that torch finds here; got {name!r}: {error}") from error


def _claim(study: Study) -> None:
    """Marks `out` as this study's; more seeds, another device or another pace of saving are still this study."""
    path = files.writable_folder(study.out) / "study.json"
    plan = json.loads(json.dumps(asdict(study), default=str))
    for free in ("out", "resume", "seeds", "device", "workers", "checkpoint_every"):
        del plan[free]
    if not path.exists():
        with files.replacing(path) as file:
            file.write(json.dumps(plan, indent=2).encode())
    elif not study.resume:
        raise FileExistsError(f"{study.out} holds a study: go on with it by --resume, or choose another --out")
    else:
        checkpoint.refuse_other_run(json.loads(path.read_text()), plan, study.out)


def _train(study: Study, job: _Job, make: Maker | None, on_epoch: Callable[[Record], None]) -> Outcome:
    result = finetune(
        _network(study, job, make),
        batches(job.task.train, study.batch_size, shuffle=True, workers=study.workers),
        batches(job.task.test, _EVAL_BATCH, shuffle=False, workers=study.workers),
        method=job.method,
        optimizer=study.optimizer,
        epochs=study.epochs,
        lr=study.rate,
        head="head" if make is None else study.head,
        device=study.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        amp=study.amp,
        seed=job.seed,
        out=study.out / "runs" / job.folder,
        resume=study.resume,
        checkpoint_every=study.checkpoint_every,
        on_epoch=on_epoch,
        progress=False,
    )
    return Outcome(job.task, job.method.name, job.seed, result.history)


def _network(study: Study, job: _Job, make: Maker | None) -> nn.Module:
    """The same network for every method."""
    if make is None:
        return networks.pretrained_digits(job.task, job.seed, study.out / "sources")
    torch.manual_seed(job.seed)
    network = make(job.task.num_classes)
    if not isinstance(network, nn.Module):
        raise ValueError(f"model must return a torch.nn.Module; {study.model} returned {type(network).__name__}")
    return network
