"""The four claims about transferability (Liu et al. 2019, arXiv:1909.12031), held against what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytl.extras import require
from pytl.intervals import Interval, interval
from pytl.transferability.measuring import SCRATCH, Measured
from pytl.transferability.runs import Run

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not decided"

Results = Mapping[Run, Measured]


@dataclass(frozen=True)
class Finding:
    """One quantity that a claim is about, of one method on one task.

    Attributes:
        task, method: of which; "" where it is over all.
        quantity: in words, with what it is compared to.
        estimate: with its 95% interval over seeds.
        neutral: the value that says nothing: 1 of a ratio, 0 of a difference.
        seeds: how many pairs.
        verdict: SUPPORTED, CONTRADICTED or OPEN.
    """

    task: str
    method: str
    quantity: str
    estimate: Interval
    neutral: float
    seeds: int
    verdict: str


@dataclass(frozen=True)
class Claim:
    """One of the four.

    Attributes:
        number, statement: as the paper has it.
        findings: what was found.
        lacking: why it could not be asked, where it could not.
    """

    number: int
    statement: str
    findings: list[Finding]
    lacking: str = ""

    @property
    def by_quantity(self) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        for one in self.findings:
            found.setdefault(one.quantity, []).append(one)
        return found

    @property
    def summary(self) -> list[str]:
        """What these data show, a sentence a quantity."""
        sentences = []
        for quantity, findings in self.by_quantity.items():
            mine = [one.verdict for one in findings]
            counts = [f"{mine.count(v)} {v}" for v in (SUPPORTED, CONTRADICTED, OPEN) if v in mine]
            sentences.append(f"{quantity}: {', '.join(counts)}")
        return [*sentences, *[f"not measured: {self.lacking}"] * bool(self.lacking)]


def verdict(estimate: Interval, neutral: float, wanted: int) -> str:
    """Whether the interval lies on the wanted side of the neutral value, -1: below, 1: above, or on the other."""
    if math.isnan(estimate.low):
        return OPEN
    low, high = wanted * (estimate.low - neutral), wanted * (estimate.high - neutral)
    return SUPPORTED if min(low, high) > 0 else CONTRADICTED if max(low, high) < 0 else OPEN


def flatness(results: Results) -> Claim:
    """Claim 1."""
    statement = "Transferred weights stay near their start, and end in flatter minima than those from a random start"
    quantities = {
        "distance from the start": lambda m: m["distance"]["total_relative"],
        "largest eigenvalue of the Hessian": lambda m: m["sharpness"]["eigenvalues"][0],
        "trace of the Hessian": lambda m: m["sharpness"]["trace"]["mean"],
        "rise of the loss on filter-normalised directions": lambda m: m["rise"],
    }
    return Claim(1, statement, *_against_scratch(results, quantities))


def smoothness(results: Results) -> Claim:
    """Claim 2."""
    statement = "The loss is smoother along the way, because the gradient's principal component is suppressed"
    quantities = {
        "change of the gradient along itself, beta": lambda m: geometric_mean(one["beta"] for one in m["path"]),
        "range of the loss along the gradient": lambda m: geometric_mean(
            one["loss_range"][1] - one["loss_range"][0] for one in m["path"]
        ),
        "gradient on the first tenth of singular directions, at the start": lambda m: geometric_mean(
            m["energy"]["top_tenth"].values()
        ),
    }
    return Claim(2, statement, *_against_scratch(results, quantities))


def geometric_mean(values: Iterable[float | None]) -> float:
    """Of those that are positive and finite; nan where there are none."""
    kept = [math.log(v) for v in values if v is not None and 0 < v < math.inf]
    return math.exp(fmean(kept)) if kept else math.nan


def _against_scratch(
    results: Results, quantities: Mapping[str, Callable[[Measured], float]]
) -> tuple[list[Finding], str]:
    """Ratios of each method to a random start, paired by seed; smaller ones support the claim."""
    if not any(run.method == SCRATCH for run in results):
        return [], f"it needs runs from a random start to compare with: the method {SCRATCH}"
    keyed = {(run.task, run.method, run.seed): measured for run, measured in results.items()}
    findings = []
    for name, value in quantities.items():
        for task, method in dict.fromkeys((run.task, run.method) for run in results if run.method != SCRATCH):
            seeds = [seed for t, m, seed in keyed if (t, m) == (task, method) and (task, SCRATCH, seed) in keyed]
            pairs = [[_asked(value, keyed[task, of, seed]) for of in (method, SCRATCH)] for seed in seeds]
            logs = [math.log(mine / other) for mine, other in pairs if 0 < mine < math.inf and 0 < other < math.inf]
            if logs:
                found = interval(logs)
                ratio = Interval(*(math.exp(x) for x in (found.mean, found.low, found.high)))
                quantity = f"{name}, over that from a random start"
                findings.append(Finding(task, method, quantity, ratio, 1.0, len(logs), verdict(ratio, 1.0, -1)))
    return findings, "" if findings else "no task has a random start and another with numbers above 0"


def _asked(value: Callable[[Measured], float], measured: Measured) -> float:
    """nan where the run could not be measured."""
    try:
        found = value(measured)
    except (KeyError, IndexError, TypeError):
        return math.nan
    return math.nan if found is None else float(found)


def similarity(
    gains: Mapping[str, Mapping[int, float]], similar: Mapping[str, Mapping[int, Measured]], least: int = 3
) -> Claim:
    """Claim 3.

    Args:
        gains: task -> seed -> accuracy of a transferred network minus that from a random start.
        similar: task -> seed -> what `measuring.similarity` gave.
        least: so many tasks are needed.
    """
    statement = "Whether transfer helps depends on how alike source and target are, in their inputs and in their labels"
    quantities: dict[str, tuple[Callable[[Measured], float], int]] = {
        "the distance of inputs (MMD²)": (lambda m: m["inputs"]["mmd"], -1),
        "the distance of inputs (EMD)": (lambda m: m["inputs"]["emd"], -1),
        "what source labels tell (1: all, 0: by chance)": (lambda m: m["labels"]["explained"], 1),
    }
    tasks = [task for task in gains if task in similar]
    if len(tasks) < least:
        lacking = f"it needs {least} tasks with a known source, and runs from a random start; got {len(tasks)}"
        return Claim(3, statement, [], lacking)
    findings = []
    for name, (value, wanted) in quantities.items():
        found = []
        for seed in sorted(set.intersection(*({*gains[task]} & {*similar[task]} for task in tasks))):
            pairs = [(_asked(value, similar[task][seed]), gains[task][seed]) for task in tasks]
            if all(math.isfinite(x) for x, _ in pairs) and len({x for x, _ in pairs}) > 1:
                found.append(_rank_correlation(pairs))
        if found:
            estimate = interval(found)
            quantity = f"rank correlation of the gain over {len(tasks)} tasks with {name}"
            findings.append(Finding("", "", quantity, estimate, 0.0, len(found), verdict(estimate, 0.0, wanted)))
    return Claim(3, statement, findings, "" if findings else "no seed has all tasks")


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    x, y = zip(*pairs, strict=True)
    found = float(require("scipy.stats", "cli").spearmanr(x, y).statistic)
    return 0.0 if math.isnan(found) else found


def stages(sweeps: Mapping[str, Mapping[int, Measured]], measure: str) -> Claim:
    """Claim 4.

    The best stage is chosen by the other seeds, so that a seed's own luck does not make a peak.

    Args:
        sweeps: task -> seed -> what `measuring.stage_accuracies` gave.
        measure: what that is, in words.
    """
    statement = "Transferability rises with the stage of pre-training, and then falls"
    findings = []
    for task, by_seed in sweeps.items():
        values = [one["values"] for one in by_seed.values() if "values" in one]
        if len(values) < 2 or len({*map(len, values)}) > 1:
            continue
        rises, falls = [], []
        for own, mine in enumerate(values):
            others = [fmean(at) for at in zip(*(v for k, v in enumerate(values) if k != own), strict=True)]
            best = max(range(len(others)), key=others.__getitem__)
            rises.append(mine[best] - mine[0])
            falls.append(mine[-1] - mine[best])
        for name, found, wanted in (
            (f"{measure} at the best stage minus that at the first", rises, 1),
            (f"{measure} at the last stage minus that at the best", falls, -1),
        ):
            estimate = interval(found)
            findings.append(Finding(task, "", name, estimate, 0.0, len(found), verdict(estimate, 0.0, wanted)))
    return Claim(4, statement, findings, "" if findings else "it needs checkpoints of the source, and two seeds")
