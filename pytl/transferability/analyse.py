"""The analysis: everything measured that the claims ask for, run by run, and the claims held against it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from torch import nn

from pytl import analysis, files
from pytl.study import networks
from pytl.study.comparison import Study, train
from pytl.study.subject import folder_name
from pytl.threads import threads
from pytl.transferability import claims, measuring
from pytl.transferability.claims import Claim
from pytl.transferability.measuring import SCRATCH, Kept, Measured, Protocol
from pytl.transferability.runs import Found, Run, find

CLAIMS = (1, 2, 3, 4)
STAGE_MEASURES = {"finetune": "accuracy after fine-tuning", "linear": "accuracy of a linear probe"}

Watch = Callable[[str, int], None]


@dataclass(frozen=True)
class Asked:
    """What is asked of the runs; checked when made, the folder of stages too.

    Attributes:
        claims: numbers.
        protocol: how runs are measured.
        stages: a folder of the source's checkpoints, for claim 4; None: those of the digits' sources are made.
        stage_count: of these, between the first and the last.
        stage_measure: one of STAGE_MEASURES.
    """

    claims: tuple[int, ...] = CLAIMS
    protocol: Protocol = field(default_factory=Protocol)
    stages: Path | None = None
    stage_count: int = 9
    stage_measure: str = "finetune"

    def __post_init__(self) -> None:
        if not self.claims or not {*self.claims} <= {*CLAIMS}:
            raise ValueError(f"claims must be among {', '.join(map(str, CLAIMS))}; got {[*self.claims]}")
        if self.stage_measure not in STAGE_MEASURES:
            raise ValueError(f"stage_measure must be one of {', '.join(STAGE_MEASURES)}; got {self.stage_measure!r}")
        if self.stages is not None:
            analysis.stage_files(self.stages)
        if self.stage_count < 1:
            raise ValueError(f"stage_count must be >= 1; got {self.stage_count}")


@dataclass
class Analysis:
    """What was measured, and what it says.

    Attributes:
        asked: what was to be measured.
        found: the runs, and the folders that were left out.
        measured: run -> distance, sharpness, energy, path and forgetting.
        similar, sweeps: task -> seed -> similarity of source and target; the measure by stage of the source.
        landscapes, traces: of one seed of each task and method, the latter where it was recorded.
    """

    asked: Asked
    found: Found
    measured: dict[Run, Measured] = field(default_factory=dict)
    similar: dict[str, dict[int, Measured]] = field(default_factory=dict)
    sweeps: dict[str, dict[int, Measured]] = field(default_factory=dict)
    landscapes: dict[Run, analysis.Landscape] = field(default_factory=dict)
    traces: dict[Run, analysis.Trace] = field(default_factory=dict)

    @property
    def claims(self) -> list[Claim]:
        """Those asked about, held against what was measured."""
        made = {
            1: lambda: claims.flatness(self.measured),
            2: lambda: claims.smoothness(self.measured),
            3: lambda: claims.similarity(self.gains, self.similar),
            4: lambda: claims.stages(self.sweeps, STAGE_MEASURES[self.asked.stage_measure]),
        }
        return [made[number]() for number in self.asked.claims]

    @property
    def gains(self) -> dict[str, dict[int, float]]:
        """Task -> seed -> accuracy of plain fine-tuning, or of the first method, minus that from a random start."""
        methods = [run.method for run in self.found.runs if run.method != SCRATCH]
        method = "plain" if "plain" in methods else next(iter(methods), "")
        accuracy = {(run.task, run.method, run.seed): run.accuracy for run in self.found.runs}
        gains: dict[str, dict[int, float]] = {}
        for (task, of, seed), value in accuracy.items():
            other = accuracy.get((task, SCRATCH, seed))
            if of == method and value is not None and other is not None:
                gains.setdefault(task, {})[seed] = value - other
        return gains

    @property
    def failures(self) -> dict[str, str]:
        """What could not be measured, and why."""
        named = {str(run): one for run, one in self.measured.items()}
        for kind, group in (("similarity", self.similar), ("stages", self.sweeps)):
            named |= {f"{task}, seed {seed}, {kind}": one for task, of in group.items() for seed, one in of.items()}
        return {name: str(one["failed"]) for name, one in named.items() if "failed" in one}


def analyse(
    folders: Sequence[Path],
    out: Path,
    asked: Asked,
    given: Study | None = None,
    device: str | None = None,
    watch: Callable[[int], AbstractContextManager[Watch]] = lambda jobs: nullcontext(lambda label, done: None),
    announce: Callable[[str], None] = lambda cost: None,
) -> Analysis:
    """Measures what is not measured yet.

    Args:
        folders: of runs, see `runs.find`.
        out: where results are kept: a stopped analysis goes on.
        asked: what is to be measured.
        given: data and network for runs that no ``study.json`` says it of.
        device: where to compute; None: a GPU if there is one.
        watch: called with the number of jobs; gives what is called with each one's label, and how many are done.
        announce: called with what it will cost, before it begins.

    Raises:
        FileNotFoundError, ValueError: as `runs.find`.
    """
    result = Analysis(asked, find(folders, given, device))
    jobs = [*_jobs(result, files.writable_folder(out) / "measures")]
    announce(cost(result.found.runs, asked))
    with threads(result.found.runs[0].study.torch_threads), watch(len(jobs)) as tell:
        for done, (label, do) in enumerate(jobs, 1):
            do()
            tell(label, done)
    return result


def cost(runs: Sequence[Run], asked: Asked) -> str:
    """What an analysis will take, in words."""
    probes = sum(len(run.path) for run in runs) * (len(analysis.lipschitz.STEPS) + 1)
    products = len(runs) * (20 + asked.protocol.trace)
    parts = []
    if {1, 2} & {*asked.claims}:
        parts.append(f"{probes} gradients and about {products} products with the Hessian")
        shown = len(_first_of_each(runs)) * asked.protocol.points**2
        parts += [f"{shown} forward passes for landscapes"] if shown else []
    parts = [f"{', '.join(parts)}, of at most {asked.protocol.samples} samples each"] if parts else []
    if 4 in asked.claims:
        each = f"{asked.stage_count + 2} stages" if asked.stages is None else "each checkpoint"
        parts.append(f"{asked.stage_measure} for {each} of {len(_tasks_and_seeds(runs))} sources")
    return f"{len(runs)} runs: {'; '.join(parts)}" if parts else f"{len(runs)} runs"


def _jobs(result: Analysis, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    kept, asked, runs = Kept(folder), result.asked, result.found.runs
    if {1, 2} & {*asked.claims}:
        for run in runs:
            yield f"{run}: weights", partial(_measure, result, kept, run)
        for run in _first_of_each(runs):
            yield f"{run}: over training", partial(_picture, result, folder, run)
    for run in _tasks_and_seeds(runs):
        if 3 in asked.claims:
            yield f"{run.task}, seed {run.seed}: similarity", partial(_compare, result, kept, run)
        if 4 in asked.claims:
            yield f"{run.task}, seed {run.seed}: stages", partial(_sweep, result, kept, run)


def _first_of_each(runs: Sequence[Run]) -> list[Run]:
    """One run of each task and method, the first."""
    return [*{(run.task, run.method): run for run in reversed(runs)}.values()][::-1]


def _tasks_and_seeds(runs: Sequence[Run]) -> list[Run]:
    """One run of each task and seed: none from a random start where there is another."""
    ordered = sorted(runs, key=lambda run: run.method != SCRATCH)
    chosen = {(run.task, run.seed): run for run in ordered}
    return [chosen[key] for key in dict.fromkeys((run.task, run.seed) for run in runs)]


def _measure(result: Analysis, kept: Kept, run: Run) -> None:
    protocol = result.asked.protocol
    about = measuring.about(run, protocol)
    result.measured[run] = kept(f"{_name(run)}-weights", about, lambda: measuring.of_run(run, protocol))


def _picture(result: Analysis, folder: Path, run: Run) -> None:
    """A landscape, and what was recorded; a loss that is not finite has been told by `_measure`."""
    protocol = result.asked.protocol
    with suppress(ValueError):
        result.traces[run] = analysis.read_trace(run.folder)
    if protocol.points and "failed" not in result.measured[run]:
        about = hashlib.sha256(measuring.about(run, protocol).encode()).hexdigest()[:8]
        cache = folder / f"{_name(run)}-landscape-{about}.json"  # of each protocol, and of weights trained anew
        result.landscapes[run] = measuring.landscape(run, protocol, cache)


def _compare(result: Analysis, kept: Kept, run: Run) -> None:
    protocol = result.asked.protocol
    about = f"{run.task} {run.seed} {asdict(protocol)}"
    found = kept(f"{_name(run, of_method=False)}-similarity", about, lambda: measuring.similarity(run, protocol))
    result.similar.setdefault(run.task, {})[run.seed] = found


def _sweep(result: Analysis, kept: Kept, run: Run) -> None:
    asked = result.asked
    about = f"{run.task} {run.seed} {asked.stages} {asked.stage_count} {asked.stage_measure} {run.study.epochs}"
    found = kept(f"{_name(run, of_method=False)}-stages", about, lambda: _stages(asked, run))
    result.sweeps.setdefault(run.task, {})[run.seed] = found


def _stages(asked: Asked, run: Run) -> Measured:
    """The measure by stage.

    Raises:
        ValueError: there are no stages of the source.
    """
    folder = asked.stages
    if folder is None:
        if not run.study.on_digits:
            raise ValueError("the source's checkpoints are needed: give their folder with --stages")
        cache = run.study.out / "sources"
        folder = networks.source_stages(run.data, run.seed, cache, asked.stage_count)
    return measuring.stage_accuracies(run, folder, asked.stage_measure, partial(_fine_tuned, run))


def _fine_tuned(run: Run, network: nn.Module) -> float:
    """The accuracy on held-out images of plain fine-tuning, as the comparison trains."""
    return float(train(run.study, run.data, network, "plain", run.seed).accuracy or 0.0)


def _name(run: Run, of_method: bool = True) -> str:
    return f"{folder_name(run.task)}{f'-{run.method}' if of_method else ''}-{run.seed}"
