"""Two and four ranks: under DDP, FSDP2 and HSDP they train what one process trains with the whole batch."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import rank_jobs
import rank_training
import ranks
import torch
from filelock import FileLock
from oracle import array, assert_same, copy_of, relative_error
from rank_jobs import CHECKPOINTED, COUNTED
from rank_training import CLIPPED, FIRST_STEPS, FOUR, MATRIX, MESHES, OTHERS, WITH_SCALAR, Case, alone

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def started(world: int, folder: Path) -> Path:
    """The folder with the ranks' outcomes; they start once, for all workers of pytest."""
    folder = folder / f"ranks-{world}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ranks.prepare(folder)
            ranks.start_ranks(world, folder)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started(2, shared_folder(tmp_path_factory))


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started(4, shared_folder(tmp_path_factory))


def outcomes(folder: Path, name: str, world: int = 2) -> list[Any]:
    """What each rank found."""
    found = []
    for rank in range(world):
        file = ranks.file_of(folder, name, world, rank)
        if not file.exists():
            pytest.fail(f"rank {rank} died before it had an outcome")
        found.append(torch.load(file, weights_only=True))
        if isinstance(found[-1], dict) and "raised" in found[-1]:
            pytest.fail(f"rank {rank}: {found[-1]['raised']}")
    return found


@functools.cache
def in_one_process(case: Case, folder: Path) -> dict[str, Any]:
    return rank_training.trained(case, folder)


def error(found: list[Any], expected: list[Any]) -> float:
    return relative_error([array(t) for t in found], [array(t) for t in expected])


def check(folder: Path, case: Case, world: int = 2) -> None:
    expected = in_one_process(alone(case), folder)
    found = outcomes(folder, str(case), world)
    for one in found:
        assert error(one["weights"], expected["weights"]) < TOLERANCE[case.dtype]
        for table in ("gram", "penalty_gram"):
            if case.clip != "torch" and expected[table].any():
                assert error([one[table]], [expected[table]]) < 10 * TOLERANCE[case.dtype]
            assert_same(one[table], found[0][table])
        assert_same(one["weights"], found[0]["weights"])


@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_two_ranks_train_what_one_process_trains(two_ranks: Path, case: Case) -> None:
    check(two_ranks, case)


@pytest.mark.parametrize("case", CLIPPED, ids=str)
def test_gradients_are_clipped_by_the_norm_of_the_whole(two_ranks: Path, case: Case) -> None:
    check(two_ranks, case)


@pytest.mark.parametrize("case", MESHES, ids=str)
def test_replicas_of_shards_are_counted_once(two_ranks: Path, case: Case) -> None:
    check(two_ranks, case)


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_other_rules_and_starts(two_ranks: Path, case: Case) -> None:
    check(two_ranks, case)


@pytest.mark.parametrize("case", WITH_SCALAR, ids=str)
def test_a_parameter_that_fsdp2_ignores_is_counted_once(two_ranks: Path, case: Case) -> None:
    check(two_ranks, case)


@pytest.mark.parametrize("case", FOUR, ids=str)
def test_four_ranks_train_what_one_process_trains(four_ranks: Path, case: Case) -> None:
    check(four_ranks, case, world=4)


# The cases can tell:


BITING = [case for case in (*MATRIX, *CLIPPED, *MESHES) if case.wrapper != "ddp" or case.clip]


@pytest.mark.parametrize("case", dict.fromkeys(alone(case) for case in BITING), ids=str)
def test_each_rule_granularity_penalty_and_bound_changes_the_result(two_ranks: Path, case: Case) -> None:
    """A hundred times more than what is tolerated."""
    without = [{"penalty": ""}, {"clip": ""}, {"direction": "sum"}]
    if case.direction != "sum":
        without += [{"granularity": "global" if case.granularity == "tensor" else "tensor"}]
    if case.direction == "grod" and not case.clip:
        without += [{"direction": "dtnh"}]
    result = in_one_process(case, two_ranks)["weights"]
    for change in without:
        other = Case(**(vars(case) | change))
        if other != case:
            assert error(in_one_process(other, two_ranks)["weights"], result) > 1e-4, change


def test_ranks_that_do_not_hear_of_each_other_are_noticed(two_ranks: Path) -> None:
    expected = in_one_process(Case("none", "grod", "global"), two_ranks)["weights"]
    for weights in outcomes(two_ranks, "unreduced"):
        assert error(weights, expected) > 1e-4


# Tables and state:


@pytest.mark.parametrize("wrapper", rank_training.WRAPPERS)
def test_rows_without_a_gradient_are_zero(two_ranks: Path, wrapper: str) -> None:
    case = Case(wrapper, "dtnh", "tensor", dtype="float64", method="SGD")
    names = [name for name, _ in rank_training.network(case).named_parameters()]
    for one in outcomes(two_ranks, str(case)):
        for name, row in zip(names, one["gram"], strict=True):
            assert bool(row.any()) == (name.split(".")[0] not in ("frozen", "unused"))


def test_state_is_laid_out_as_its_parameter_and_numbers_are_the_same_on_all_ranks(two_ranks: Path) -> None:
    found = outcomes(two_ranks, "states")
    for one in found:
        assert one["wrong"] == []
        assert one["numbers"]["stem.weight step"] == 1
        assert_same(one["numbers"], found[0]["numbers"])
        assert {name.split(".")[0] for name in one["stateless"]} == {"frozen", "unused"}


@pytest.mark.parametrize("name", COUNTED)
def test_a_step_costs_one_collective_where_anything_is_sharded(two_ranks: Path, name: str) -> None:
    expected = int(name not in ("ddp", "hsdp of whole replicas"))
    for steps in outcomes(two_ranks, "collectives"):
        assert [sum(counts.values()) for counts in steps[name]] == [expected] * (FIRST_STEPS - 1), steps[name]


def test_ranks_agree_on_the_dtype_of_a_start(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "start_dtypes"):
        assert one["local dtypes"] == one["dtypes"] == ["torch.float32", "torch.bfloat16"]
        assert_same(one["starts"], one["expected"])


SHADOWED = [
    "mixed_precision",
    "sixteen_bits",
    "without_the_core",
    "two_paths",
    "infinite_on_one_rank",
    "later_gradient",
    "nothing_on_one_rank",
    "split_by_columns",
    "tensor_parallel",
]


def check_shadow(one: dict[str, Any]) -> None:
    torch.testing.assert_close(one["weights"], one["expected"], rtol=1e-6, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(one["gram"], one["expected gram"], rtol=1e-5, atol=0, equal_nan=True)


def test_shards_of_shards_are_summed_over_both_dimensions_of_the_mesh(four_ranks: Path) -> None:
    for one in outcomes(four_ranks, "two_dimensions", world=4):
        check_shadow(one)


@pytest.mark.parametrize("name", SHADOWED)
def test_steps_equal_those_on_whole_copies(two_ranks: Path, name: str) -> None:
    for one in outcomes(two_ranks, name):
        check_shadow(one)


@pytest.mark.parametrize("name", SHADOWED)
def test_reports_are_of_the_whole(two_ranks: Path, name: str) -> None:
    for one in outcomes(two_ranks, name):
        report, expected = one["report"], one["expected report"]
        for key in ("distance", "cosine", "conflict_rate", "penalty"):
            assert report[key] == pytest.approx(expected[key], rel=1e-5, nan_ok=True), key
        assert report["nonfinite"] == expected["nonfinite"]


def test_an_overflow_on_one_rank_skips_the_step_on_all(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "overflow_on_one_rank"):
        assert_same(one["after"], one["before"])
        assert one["scale"] == 512
        assert one["steps"][0] == one["steps"][1]


def test_a_scaled_penalty_is_unscaled_and_its_overflow_skips_the_step(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "scaled_penalties"):
        assert_same(one["scaled"]["after"], one["plain"]["after"])
        assert_same(one["overflown"]["after"], one["overflown"]["before"])
        assert one["overflown"]["scale"] == 512


@pytest.mark.parametrize("name", ["scaled_penalty_where_nothing_is", "scaled_penalty_beside_the_task"])
def test_a_scaler_changes_no_bit_whatever_a_rank_holds(two_ranks: Path, name: str) -> None:
    for one in outcomes(two_ranks, name):
        assert error(one["plain"], one["before"]) > 1e-3
        assert_same(one["scaled"], one["plain"])


def test_parameters_that_are_replaced_by_their_shards_train_the_same(two_ranks: Path) -> None:
    expected = in_one_process(Case("none", start=""), two_ranks)["weights"]
    for weights in outcomes(two_ranks, "replaced_parameters"):
        assert error(weights, expected) < 1e-12


def test_an_optimizer_in_backward_equals_the_step_after_it(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "in_backward"):
        assert_same(one["in"], one["after"])


def test_a_penalty_leaves_the_gradients_of_earlier_micro_batches(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "penalty_leaves_the_task"):
        assert len(one["after"]) == len(one["before"]) > 0
        assert_same(one["after"], one["before"])


# Saving and loading:


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_checkpoint_of_two_ranks_continues_there_to_the_bit(two_ranks: Path, name: str) -> None:
    saved, loaded = outcomes(two_ranks, f"save_on_two {name}"), outcomes(two_ranks, f"load_on_two {name}")
    for ours, theirs in zip(loaded, saved, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_checkpoint_of_two_ranks_continues_in_one_process(two_ranks: Path, name: str) -> None:
    found = rank_jobs.loaded_and_continued(two_ranks / f"{name}-of-two", alone(CHECKPOINTED[name]))
    for expected in outcomes(two_ranks, f"save_on_two {name}"):
        assert_same(found["starts"], expected["starts"])
        assert found["steps"] == expected["steps"]
        assert error(found["weights"], expected["weights"]) < 1e-12


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_checkpoint_of_one_process_continues_on_two_ranks(two_ranks: Path, name: str) -> None:
    expected = torch.load(two_ranks / f"{name}-of-one.pt", weights_only=True)
    for found in outcomes(two_ranks, f"load_of_one {name}"):
        assert_same(found["starts"], expected["starts"])
        assert found["steps"] == expected["steps"]
        assert error(found["weights"], expected["weights"]) < 1e-12


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_a_loaded_start_keeps_its_bits_whatever_the_weights_were(two_ranks: Path, name: str) -> None:
    """bfloat16 holds zeros without loss; it would not hold the start that is loaded over them."""
    for found, expected in zip(
        outcomes(two_ranks, f"load_on_two_into_zeros {name}"), outcomes(two_ranks, f"save_on_two {name}"), strict=True
    ):
        assert_same([start.double() for start in found["starts"]], [start.double() for start in expected["starts"]])


def test_making_the_state_for_a_load_moves_nothing(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "first_state"):
        assert_same(one["after"], one["before"])
        assert one["finite"]
        assert_same(one["starts"], one["weights"])
        assert one["starts"]


def test_the_whole_state_in_one_file_continues_on_two_ranks(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "full_state"):
        assert_same(one["found"], one["expected"])


def test_the_whole_state_in_one_file_continues_in_one_process(two_ranks: Path) -> None:
    from torch.distributed.checkpoint.state_dict import set_state_dict

    case = alone(CHECKPOINTED["adamw"])
    run, model, opt = rank_jobs.savable(case, seed=3)
    state = torch.load(two_ranks / "full-1.pt", weights_only=True)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    found = rank_jobs.continued(run, model, case, opt)
    for one in outcomes(two_ranks, "full_state"):
        assert_same(found["starts"], one["expected"]["starts"])
        assert error(found["weights"], one["expected"]["weights"]) < 1e-12


def test_a_state_dict_of_one_process_loads_where_parameters_are_sharded(two_ranks: Path) -> None:
    expected = torch.load(two_ranks / "adamw-of-one.pt", weights_only=True)
    for found in outcomes(two_ranks, "state_of_one_process"):
        assert_same(found["starts"], expected["starts"])
        assert error(found["weights"], expected["weights"]) < 1e-12


def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "checkpoint_of_another"):
        assert "stem" in one["said"]
        assert_same(one["after"], one["before"])


@pytest.mark.parametrize("name", ["resumed_sgd", "resumed_adamw"])
def test_a_file_of_each_rank_resumes_to_the_bit(two_ranks: Path, name: str) -> None:
    for one in outcomes(two_ranks, name):
        assert_same(one["found"], one["expected"])


def test_a_rank_s_file_is_refused_where_there_is_another_number_of_ranks(two_ranks: Path) -> None:
    outcomes(two_ranks, "resumed_adamw")
    *_, opt = rank_jobs.savable(alone(CHECKPOINTED["adamw"]))
    before = copy_of(opt)
    state = torch.load(two_ranks / "AdamW-of-rank-0.pt", weights_only=True)
    with pytest.raises(ValueError, match=r"must be of these ranks .*exp_avg of \S*: on \[2\], here \[\]"):
        opt.load_state_dict(state["optimizer"])
    assert_same(copy_of(opt), before)


def test_a_copy_of_the_optimizer_steps_alike_and_apart(two_ranks: Path) -> None:
    for one in outcomes(two_ranks, "copied"):
        assert one["untouched"]
        assert_same(one["found"], one["expected"])


@pytest.mark.parametrize("kind", ["pytl", "torch"])
def test_a_recorder_of_sharded_parameters_writes_what_one_of_whole_ones_does(
    two_ranks: Path, kind: str, tmp_path: Path
) -> None:
    expected = rank_jobs.recorded_by(kind, alone(rank_jobs.SHARDED), tmp_path)
    first, second = outcomes(two_ranks, "recorded")
    assert second[kind] == []
    assert len(first[kind]) == len(expected) == FIRST_STEPS
    for found, wanted in zip(first[kind], expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-9)


REFUSALS = {
    "granularity": "ValueError: granularity must be",
    "direction": "ValueError: direction must be",
    "missing": "missing: stem.weight",
    "shape": "stem.weight: expected [5, 7], got [3, 7]",
    "no parameter": "ValueError: value must",
    "no scalar": "ValueError: value must be a scalar",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_is_refused_on_each_rank(two_ranks: Path, name: str) -> None:
    for said in outcomes(two_ranks, "refusals"):
        assert REFUSALS[name] in said[name]
