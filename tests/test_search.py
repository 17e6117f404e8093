"""pytl.search: what is tried, what is kept, what a kill leaves, and what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pytl
from pytl.data import batches, digits
from pytl.study.networks import DigitsNet
from pytl.trials import Candidate, Problem, SearchResult, Space, Split, StorageError, search
from pytl.trials.storage import Trials, owned

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Space(new_blocks=(1, 3), low=(0.0, 1.0), lr=(1.0,), lr_ratio=(1.0,), sp_decay=(0.0, 0.03), direction=("sum",))
NAMES = ["layer1.0", "layer1.2", "layer2.0", "layer2.2", "layer3.0", "layer3.2", "head"]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return DigitsNet(10)


def split(seed: int) -> Split:
    task = digits.load("mirrored", seed, held_out="validation")
    return Split(seed, task.train, task.test)


def problem(**changes: Any) -> Problem:
    values = {"space": SMALL, "lr": 0.03, "epochs": 1, "batch_size": 32, "head": "head", "threads": 1, **changes}
    return Problem("test", network, (split(0), split(1)), **values)


class Table(Problem):
    """A problem whose accuracies are read off a function, without training; each one asked for is noted in a file."""

    def accuracy(self, candidate: Candidate, split: Split) -> float:
        notes = os.environ.get("PYTL_TEST_NOTES")
        if notes:
            with open(notes, "a") as file:
                file.write(json.dumps([candidate.rules.to_dict(), candidate.direction, split.seed]) + "\n")
            time.sleep(float(os.environ.get("PYTL_TEST_PAUSE", "0")))
        rules = candidate.rules
        return (
            0.9 - 0.05 * abs(int(rules.new_blocks) - 3) - rules.sp_decay + rules.weight_decay / 10 + split.seed / 1000
        )


def table(**changes: Any) -> Table:
    return Table("table", network, (split(0), split(1)), **{"head": "head", "lr": 0.03, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path]:
    """A search that really trains."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trained")
    return search(problem(), out, trials=4, advice=pytl.Rules(3, 0, weight_decay=0.03), progress=False), out


def test_search_writes_all_it_promises(trained: tuple[SearchResult, Path]) -> None:
    result, out = trained
    assert {path.name for path in out.iterdir()} >= {"search.db", "plan.yaml", "search.json", "report.html", "figures"}
    assert pytl.TransferPlan.load(out / "plan.yaml") == result.plan
    assert json.loads((out / "search.json").read_text())["accuracy"] == result.accuracy
    assert result.accuracy == max(trial["value"] for trial in result.trials if trial["value"] is not None)


def test_report_is_one_file_that_needs_no_network(trained: tuple[SearchResult, Path]) -> None:
    text = (trained[1] / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert str(trained[0].plan.blocks[0].block) in text


def test_first_trials_are_the_advice_plain_and_l2sp(trained: tuple[SearchResult, Path]) -> None:
    first = [trial["values"] for trial in trained[0].trials[:3]]
    assert [(v["new_blocks"], v["low"], v["sp_decay"]) for v in first] == [(3, 0.0, 0.0), (1, 0.0, 0.0), (1, 1.0, 0.03)]
    assert all(v["weight_decay"] == 0.03 for v in first)


def test_the_plan_that_is_found_trains_as_its_trial_did(trained: tuple[SearchResult, Path]) -> None:
    """What ``pytl finetune --plan`` makes of the file has the trial's accuracies, to the bit."""
    result, out = trained
    accuracies = next(t["accuracies"] for t in result.trials if t["value"] == result.accuracy)
    for one, expected in zip(problem().splits, accuracies, strict=True):
        found = pytl.finetune(
            network(one.seed),
            batches(one.train, 32, shuffle=True),
            batches(one.validation, 256, shuffle=False),
            plan=out / "plan.yaml",
            epochs=1,
            lr=0.03,
            head="head",
            seed=one.seed,
            progress=False,
        )
        assert found.accuracy == expected


def test_search_finds_the_best_of_a_known_table(tmp_path: Path) -> None:
    result = search(table(), tmp_path, trials=40, progress=False)
    assert result.best.rules.new_blocks == 3
    assert result.best.rules.sp_decay == 0
    assert sum(result.importances.values()) == pytest.approx(1)


def test_hopeless_trials_are_given_up_after_one_split(tmp_path: Path) -> None:
    result = search(table(), tmp_path, trials=25, progress=False)
    pruned = [trial for trial in result.trials if trial["state"] == "pruned"]
    assert pruned
    assert all(len(trial["accuracies"]) == 1 for trial in pruned)


def test_a_candidate_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTL_TEST_NOTES", str(tmp_path / "notes"))
    search(table(space=SMALL), tmp_path, trials=30, progress=False)
    notes = (tmp_path / "notes").read_text().splitlines()
    finished = {json.dumps(json.loads(note)[:2]) for note in notes}
    repeated = [note for note in set(notes) if notes.count(note) > 1]
    assert len(notes) < 60
    assert len(finished) > 3
    assert not [note for note in repeated if notes.count(note) > 2]  # a pruned one has no value to reuse


COMMAND = """
import sys
sys.path.insert(0, sys.argv[1])
from test_search import table, search
if __name__ == "__main__":
    search(table(), sys.argv[2], trials=int(sys.argv[3]), workers=int(sys.argv[4]), resume=True, progress=False)
"""


def started(out: Path, trials: int, workers: int, notes: Path, pause: float) -> subprocess.Popen[str]:
    script = out.parent / "command.py"
    script.write_text(COMMAND)
    arguments = [sys.executable, str(script), str(Path(__file__).parent), str(out), str(trials), str(workers)]
    environment = {**os.environ, "PYTL_TEST_NOTES": str(notes), "PYTL_TEST_PAUSE": str(pause)}
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(2000):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.02)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_killed_search_resumes_and_neither_loses_nor_repeats_a_finished_trial(tmp_path: Path) -> None:
    workers = 2
    out, notes = tmp_path / "out", tmp_path / "notes"
    process = started(out, 14, workers, notes, 0.1)
    wait_for(lambda: len(lines(notes)) >= 9, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.5)  # workers notice that they are alone
    before = kept_in(out)
    count = len(lines(notes))
    time.sleep(0.5)
    assert len(lines(notes)) == count, "a worker outlived its search"
    os.environ.pop("PYTL_TEST_NOTES", None)
    again = started(out, 14, workers, notes, 0.0)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    after = kept_in(out)
    assert {key: after[key] for key in before} == before
    assert len(after) >= 14
    assert len(after) <= 14 + workers
    whole = [note for note in lines(notes)[count:] if note in lines(notes)[:count]]
    finished = {json.dumps(json.loads(candidate)) for candidate, state in before.values() if state == "complete"}
    again_run = {json.dumps(dict(zip(("rules", "direction"), json.loads(note)[:2], strict=True))) for note in whole}
    assert not finished & again_run


def kept_in(out: Path) -> dict[int, tuple[str, str]]:
    """Finished trials as the storage has them: number -> (candidate, state)."""
    digest = table().digest(NAMES)
    kept = Trials(f"sqlite:///{out / 'search.db'}", "table", digest, seed=0, exclusive=True, parallel=False)
    return {trial["number"]: (trial["candidate"], trial["state"]) for trial in kept.done()}


def test_ctrl_c_ends_all_processes_and_keeps_what_is_finished(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    process = started(tmp_path / "out", 30, 2, notes, 0.1)
    wait_for(lambda: len(lines(notes)) >= 6, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    count = len(lines(notes))
    time.sleep(0.4)
    assert len(lines(notes)) == count
    assert errors.count("Traceback") <= 1
    assert kept_in(tmp_path / "out")


def test_more_trials_may_be_added(tmp_path: Path) -> None:
    first = search(table(), tmp_path, trials=4, progress=False)
    more = search(table(), tmp_path, trials=7, resume=True, progress=False)
    assert more.trials[:4] == first.trials
    assert len(more.trials) == 7


def test_a_finished_search_is_read_and_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = search(table(), tmp_path, trials=4, progress=False)
    monkeypatch.setattr(Table, "accuracy", lambda *arguments: pytest.fail("trained again"))
    assert search(table(), tmp_path, trials=4, resume=True, progress=False).trials == first.trials


def test_search_does_not_overwrite_another(tmp_path: Path) -> None:
    search(table(), tmp_path, trials=2, progress=False)
    before = (tmp_path / "search.db").read_bytes()
    with pytest.raises(FileExistsError, match="go on with it by resume, or choose another out"):
        search(table(), tmp_path, trials=2, progress=False)
    with pytest.raises(StorageError, match="holds the trials of another search"):
        search(table(epochs=3), tmp_path, trials=3, resume=True, progress=False)
    assert (tmp_path / "search.db").read_bytes() == before


def test_a_storage_in_use_is_refused_and_says_by_whom(tmp_path: Path) -> None:
    with (
        owned(tmp_path / "search.db"),
        pytest.raises(StorageError, match=rf"in use by another search \(process {os.getpid()}\)"),
    ):
        search(table(), tmp_path, trials=2, progress=False)


@pytest.mark.parametrize("damage", ["text", "truncated", "flipped"])
def test_a_damaged_storage_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "search.db"
    search(table(), tmp_path, trials=3, progress=False)
    whole = path.read_bytes()
    broken = {
        "text": b"this is no database, but it is quite long" * 40,
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:100] + bytes(byte ^ 0xFF for byte in whole[100:9000]) + whole[9000:],
    }[damage]
    path.write_bytes(broken)
    with pytest.raises(StorageError, match=r"search\.db is damaged"):
        search(table(), tmp_path, trials=4, resume=True, progress=False)
    assert path.read_bytes() == broken


def test_several_searches_share_a_database_by_its_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    one = search(table(), tmp_path / "a", trials=5, storage=url, progress=False)
    other = search(table(), tmp_path / "b", trials=8, storage=url, progress=False)
    assert other.trials[:5] == one.trials
    assert len(other.trials) == 8
    names = {row[0] for row in sqlite3.connect(tmp_path / "shared.db").execute("select study_name from studies")}
    assert names == {"pytl table"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_blocks": ()}, "new_blocks must have >= 1 choice; got none"),
        ({"new_blocks": (0,)}, "new_blocks must be >= 1"),
        ({"low": (1.5,)}, r"low must be shares in \[0, 1\]; got 1.5"),
        ({"lr": (0.0,)}, "lr must be factors > 0; got 0.0"),
        ({"lr_ratio": (-1.0,)}, "lr_ratio must be > 0; got -1.0"),
        ({"sp_decay": (-0.1,)}, "must be >= 0; got -0.1"),
        ({"direction": ("dthn",)}, "direction must be one of"),
    ],
)
def test_bad_spaces_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space(**change)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"trials": 0}, "trials must be >= 1; got 0"), ({"workers": 0}, "workers must be >= 1; got 0")],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(table(), tmp_path, progress=False, **options)


def test_choices_beyond_the_network_are_left_out() -> None:
    assert Space().within(4).new_blocks == (1, 2, 3, 4)


def test_values_that_mean_the_same_are_one_candidate() -> None:
    space = Space()
    values = {"new_blocks": 7, "low": 0.5, "lr": 1.0, "lr_ratio": 5.0, "sp_decay": 0.1, "weight_decay": 0.0}
    one = space.candidate({**values, "direction": "dtnh"}, 6, 0.03)
    other = space.candidate({**values, "lr_ratio": 1.0, "sp_decay": 0.0, "direction": "sum"}, 6, 0.03)
    assert one == other  # nothing is transferred, so that nothing is low and there is no pull to direct


@pytest.mark.parametrize("new", [1, 2, 4, 7])
@pytest.mark.parametrize("boundary", [None, 0, 3])
def test_nearest_values_are_those_that_rules_came_from(new: int, boundary: int | None) -> None:
    rules = pytl.Rules(new, boundary, lr=0.06, lr_ratio=5.0, sp_decay=0.1, weight_decay=0.01)
    values = Space().nearest(rules, 6, 0.03, "grod")
    assert (values["new_blocks"], values["lr"], values["weight_decay"], values["direction"]) == (new, 2.0, 0.01, "grod")
    assert {0: 0.0, None: 0.0 if new == 7 else 1.0}.get(boundary, values["low"]) == values["low"]


def test_test_data_play_no_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``pytl search`` on digits reads no test image: they are replaced by NaN, and the accuracies stay."""
    from pytl.commands.search import _splits
    from pytl.study.subject import Subject

    about = Subject(data="digits:mirrored")
    test = digits.load("mirrored", 1000).test
    assert isinstance(test, TensorDataset)
    seen = {tuple(image.flatten().tolist()) for image in test.tensors[0]}
    for one in _splits(about, "mirrored", range(1000, 1003)):
        for data in (one.train, one.validation):
            assert isinstance(data, TensorDataset)
            assert not seen & {tuple(image.flatten().tolist()) for image in data.tensors[0]}


def test_problem_goes_to_other_processes() -> None:
    import pickle

    again = pickle.loads(pickle.dumps(Problem("test", partial(network), (split(0), split(1)), SMALL, 0.03, 1, 32)))
    assert again.digest(NAMES) == problem().digest(NAMES)
