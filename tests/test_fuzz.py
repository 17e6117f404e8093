"""Whatever a file holds, its reader returns or says what is wrong with which file, at once and in little memory."""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kept_files import KEPT, REFUSALS, Kept, refusal
from safetensors.torch import save, save_file
from torch.nn import Parameter

import pytl
from pytl.training.fine_tuning import finetune
from pytl.trials.storage import StorageError, Trials, check_sound

pytestmark = pytest.mark.usefixtures("one_thread", "_in_half_a_minute")

MOST_MEMORY = 256 << 10  # KiB that a refusal may take
QUICK = settings(
    phases=(Phase.explicit, Phase.generate), suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # no shrinking: a case that fails is small enough


@pytest.fixture
def _in_half_a_minute() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError("took half a minute")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextmanager
def little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


def read_or_refused(kept: Kept, path: Path) -> None:
    with little_memory():
        said = refusal(lambda: kept.read(path))
    assert said is None or path.name in said or str(path.parent) in said


def put(path: Path, written: bytes) -> None:
    """In a file of its own: the last one may still be mapped into memory."""
    path.unlink(missing_ok=True)
    path.write_bytes(written)


def kinds(*names: str) -> Any:
    return pytest.mark.parametrize("kept", [pytest.param(KEPT[name], id=name) for name in names])


JSON = ("plan .json", "metrics", "trace", "losses", "study", "run", "advice", "preparation", "index")
SAFETENSORS = ("start .safetensors", "channel weights", "feature split", "channel sums", "cached features")

CHANGES = ("flipped", "cut", "replaced", "repeated")


def changes() -> Any:
    cells = [pytest.param(KEPT[name], how, id=f"{name}-{how}") for name in KEPT for how in CHANGES]
    return pytest.mark.parametrize(("kept", "how"), cells)


@kinds(*KEPT)
@QUICK
@given(written=st.binary(max_size=300))
def test_random_bytes_are_read_or_refused_by_name(tmp_path: Path, kept: Kept, written: bytes) -> None:
    path = tmp_path / kept.name
    if not path.exists():
        kept.made_in(tmp_path)
    put(path, written)
    read_or_refused(kept, path)


@changes()
def test_a_real_file_that_was_changed_is_read_or_refused_by_name(tmp_path: Path, kept: Kept, how: str) -> None:
    path = kept.made_in(tmp_path)
    whole, draws = path.read_bytes(), random.Random(how)
    for _ in range(60):
        put(path, mutated(whole, how, draws))
        read_or_refused(kept, path)


def mutated(whole: bytes, how: str, draws: random.Random) -> bytes:
    a, b = sorted(draws.randrange(len(whole) + 1) for _ in range(2))
    if how == "flipped":
        changed = bytearray(whole)
        changed[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        return bytes(changed)
    if how == "cut":
        return whole[:a]
    if how == "replaced":
        return whole[:a] + draws.randbytes(draws.randrange(9)) + whole[min(b, a + 9) :]
    return whole[:b] + whole[a:]


KEYS = (
    *(
        "pytl",
        "blocks",
        "block",
        "lr",
        "direction",
        "step",
        "loss",
        "epoch",
        "distance/a",
        "about",
        "losses",
        "methods",
    ),
    *(
        "data",
        "model",
        "epochs",
        "plan",
        "recommendation",
        "rules",
        "new_blocks",
        "image_mean",
        "image_std",
        "weight_map",
    ),
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**400)
    | st.floats()
    | st.sampled_from(["transfer plan", "plain", "digits:classes", "loss", "", "..", "one.safetensors"])
    | st.text(max_size=5)
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner),
    max_leaves=12,
)


@kinds(*JSON)
@QUICK
@given(values=VALUES, more=VALUES)
def test_json_of_any_shape_is_read_or_refused_by_name(tmp_path: Path, kept: Kept, values: Any, more: Any) -> None:
    path = tmp_path / kept.name
    if not path.exists():
        kept.made_in(tmp_path)
    put(path, f"{json.dumps(values)}\n{json.dumps(more)}\n".encode())
    read_or_refused(kept, path)
    put(path, json.dumps(values).encode())
    read_or_refused(kept, path)


# JSON that is known to be nasty.

DEEP = b'{"a":' * 100_000
NASTY: dict[str, bytes] = {
    "nothing": b"",
    "deep lists": b"[" * 200_000,
    "deep mappings": DEEP,
    "closed deep lists": b"[" * 100_000 + b"]" * 100_000,
    "no UTF-8": b"\xff\xfe\x00{}",
    "a lone surrogate": b'{"\\ud800": "\\udfff"}',
    "null": b"null",
    "a list": b"[]",
    "a number": b"3",
    "an empty mapping": b"{}",
    "keys twice": b'{"pytl":1,"pytl":2,"weight_map":{},"weight_map":[],"step":1,"step":[]}',
    "NaN": b'{"step":NaN,"epochs":NaN,"losses":[[NaN,0,0]],"image_mean":NaN,"weight_map":NaN}',
    "infinity": b'{"step":1e999,"about":"x","losses":[[1e999,0,0]],"image_mean":1e999,"weight_map":1e999}',
    "too many digits": b'{"step":' + b"9" * 5000 + b"}",
    "huge integers": b'{"step":1,"loss":' + b"9" * 400 + b',"losses":[[0,0,' + b"9" * 400 + b"]]}",
    "a mapping for a number": b'{"step":{},"loss":{},"image_mean":{"a":1},"weight_map":{"a":{}}}',
    "text for a number": b'{"step":"x","loss":"x","image_mean":"abc","weight_map":"abc","data":3,"methods":"x"}',
    "numbers for names": b'{"methods":[3],"data":3,"weight_map":{"a":3},"recommendation":3,"blocks":3}',
}


def nasty(*names: str) -> Any:
    cells = [
        pytest.param(KEPT[name], written, id=f"{name}-{what}") for name in names for what, written in NASTY.items()
    ]
    return pytest.mark.parametrize(("kept", "written"), cells)


@nasty("plan .yaml", *JSON)
def test_nasty_json_is_read_or_refused_by_name(tmp_path: Path, kept: Kept, written: bytes) -> None:
    path = kept.made_in(tmp_path)
    put(path, written + b"\n{}\n" if path.suffix == ".jsonl" else written)
    read_or_refused(kept, path)


@pytest.mark.filterwarnings("ignore:recorded steps are lost")
@pytest.mark.parametrize("what", NASTY)
def test_a_run_goes_on_whatever_the_lines_of_its_steps_hold(tmp_path: Path, what: str) -> None:
    batches = [(torch.randn(4, 6), torch.zeros(4, dtype=torch.long))]
    options: dict[str, Any] = {"head": "1", "method": "plain", "out": tmp_path, "progress": False, "seed": 0}

    def fitted(**more: Any) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Linear(3, 2))
        return finetune(model, batches, epochs=1, **options, **more)

    first = fitted()
    put(tmp_path / "metrics.jsonl", NASTY[what] + b"\n{}\n")
    assert fitted(resume=True).history == first.history


# YAML.

YAML: dict[str, bytes] = {
    "a tag that runs": b"!!python/object/apply:os.mkdir ['exploded']",
    "an alias of itself": b"pytl: transfer plan\nblocks: &a [*a]",
    "a block that is itself": b"pytl: transfer plan\nblocks:\n- &a\n  block: *a",
    "a thousand laughs": b"a: &a [x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 8)) for c in range(97, 112))
    + b"pytl: transfer plan\nblocks: *p",
    "a key that is a list": b"? [a]\n: b",
    "a key that is a number": b"pytl: transfer plan\n1: 2\nblocks: [{block: a}]",
    "a block's key that is a list": b"pytl: transfer plan\nblocks: [{block: a, [1]: 4}]",
    "a date for a rate": b"pytl: transfer plan\nblocks: [{block: a, lr: 2001-01-01}]",
    "a date that is none": b"pytl: transfer plan\nblocks: [{block: a, lr: 2001-99-99}]",
    "sixty to the thousands": b"pytl: transfer plan\nblocks: [{block: a, lr: " + b"1:" * 30_000 + b"1}]",
    "five thousand digits": b"pytl: transfer plan\nblocks: [{block: a, lr: 0x" + b"f" * 5000 + b"}]",
    "not a number": b"pytl: transfer plan\nblocks: [{block: a, lr: .nan}]",
    "binary that is none": b"pytl: transfer plan\nblocks: [{block: !!binary '=', lr: 1}]",
    "a set": b"pytl: transfer plan\nblocks: !!set {a, b}",
    "two documents": b"pytl: transfer plan\n---\nblocks: []",
    "tabs": b"pytl:\ttransfer plan\n\tblocks:\n",
    "control characters": b"pytl: \x07\x00",
    "more than a plan": b"pytl: transfer plan\nblocks: [{block: a}]\n# " + b"x" * (1 << 20),
}


@pytest.mark.parametrize("what", YAML)
def test_nasty_yaml_is_refused_by_name(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "plan.yaml", YAML[what])
    with little_memory(), pytest.raises(ValueError, match=r"plan\.yaml"):
        pytl.TransferPlan.load(tmp_path / "plan.yaml")
    assert not (tmp_path / "exploded").exists()


# Safetensors whose headers lie.

METADATA: dict[str, dict[str, str]] = {
    "start .safetensors": {},
    "channel weights": {"pytl": "channel weights", "method": "exact"},
    "feature split": {"pytl": "a feature split", "criterion": "both"},
    "channel sums": {"pytl": "sums of channel scores", "source": "a network"},
    "cached features": {"pytl": "source features", "format version": "1", "source": "a network"},
}


def tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[Any, int]] = {
    "offsets beyond the end": ({"a": tensor(0, 400)}, 8),
    "offsets that overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12),
    "offsets with a hole": ({"a": tensor(0, 4), "b": tensor(8, 12)}, 12),
    "offsets below 0": ({"a": tensor(-4, 4)}, 8),
    "offsets backwards": ({"a": tensor(8, 0, [2])}, 8),
    "a huge shape": ({"a": tensor(0, 8, [2**62, 2**62])}, 8),
    "a shape below 0": ({"a": tensor(0, 8, [-2])}, 8),
    "a shape of text": ({"a": tensor(0, 8, ["x"])}, 8),  # type: ignore[list-item]
    "an unknown dtype": ({"a": tensor(0, 4, dtype="X9")}, 4),
    "a dtype that torch lacks": ({"a": tensor(0, 3, [4], "F6_E2M3")}, 3),
    "no tensors": ({}, 0),
    "a list": ([], 0),
    "text": ("header", 0),
    "deep mappings": (DEEP, 0),
    "no JSON": (b"x", 0),
    "no UTF-8": (b"\xff\xfe", 0),
}


def lying(header: Any, size: int, about: dict[str, str]) -> bytes:
    if isinstance(header, dict):
        header = {"__metadata__": about, **header}
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + bytes(size)


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_lying_header_is_refused_by_name(tmp_path: Path, name: str, what: str) -> None:
    path = KEPT[name].made_in(tmp_path)
    put(path, lying(*HEADERS[what], METADATA[name]))
    read_or_refused(KEPT[name], path)


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 2**40, 100_000_001, 9])
@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_header_of_a_huge_length_is_refused_by_name(tmp_path: Path, name: str, length: int) -> None:
    path = KEPT[name].made_in(tmp_path)
    put(path, struct.pack("<Q", length) + b"{}")
    with little_memory(), pytest.raises(ValueError, match=path.name):
        KEPT[name].read(path)


METAVALUES: dict[str, tuple[str, tuple[str, ...]]] = {
    "channel weights": ("layers", ("[1]", "3", '"ab"', "[[1]]", "null", '["b"]', '[{"a":1}]', "[" * 200_000)),
    "feature split": (
        "guards",
        ("[1]", "3", '{"a":3}', '{"a":{}}', '{"a":{"steps":1}}', "null", "{" * 9, "[" * 200_000),
    ),
    "channel sums": ("done", ("x", "1e9", "9" * 5000, "nan", "")),
    "cached features": (
        "given",
        ("[1]", "3", '{"a":"nope"}', '{"a":"load"}', '{"a":3}', '{"b":"float32"}', "null", "[" * 200_000),
    ),
}


def metavalues() -> Any:
    cells = [
        pytest.param(name, key, value, id=f"{name}-{i}")
        for name, (key, values) in METAVALUES.items()
        for i, value in enumerate(values)
    ]
    return pytest.mark.parametrize(("name", "key", "value"), cells)


@metavalues()
def test_nonsense_in_the_metadata_is_refused_by_name(tmp_path: Path, name: str, key: str, value: str) -> None:
    path = KEPT[name].made_in(tmp_path)
    rows = {f"{kind}.a": torch.zeros(9) for kind in ("weights", "scores", "sums", "features")}
    rows |= {"sums.b": torch.zeros(3), "ids": torch.zeros(9).long(), "digests": torch.zeros(9).long()}
    put(path, save(rows, {**METADATA[name], "samples": "1", key: value}))
    with pytest.raises(ValueError, match=path.name):
        KEPT[name].read(path)


ROWS: dict[str, dict[str, torch.Tensor]] = {
    "channel weights": {"weights.a": torch.zeros(2, 2), "scores.a": torch.zeros(1, dtype=torch.int32)},
    "channel sums": {"sums.a": torch.zeros(2), "sums.b": torch.zeros(3, dtype=torch.int64)},
    "cached features": {"ids": torch.zeros(2), "digests": torch.zeros(3).long(), "features.a": torch.zeros(1, 2)},
}
KEYS_OF = {
    "channel weights": {"layers": '["a"]'},
    "channel sums": {"done": "12"},
    "cached features": {"given": '{"a":"float32"}'},
}


@pytest.mark.parametrize("name", ROWS)
def test_tensors_that_do_not_fit_one_another_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = KEPT[name].made_in(tmp_path)
    put(path, save(ROWS[name], {**METADATA[name], "samples": "4", **KEYS_OF[name]}))
    with pytest.raises(ValueError, match=path.name):
        KEPT[name].read(path)


@pytest.mark.parametrize("name", [name for name in KEPT if name != "preparation"])  # which need not be there
def test_a_folder_in_a_file_s_place_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = KEPT[name].made_in(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises((*REFUSALS, OSError), match=str(tmp_path)):
        KEPT[name].read(path)


# Index files.

INDICES: dict[str, str] = {
    "a file above": '{"weight_map": {"a": "../one.safetensors"}}',
    "a file elsewhere": '{"weight_map": {"a": "/etc/passwd"}}',
    "a file in a folder below": '{"weight_map": {"a": "below/one.safetensors"}}',
    "the folder": '{"weight_map": {"a": "."}}',
    "the folder above": '{"weight_map": {"a": ".."}}',
    "nothing": '{"weight_map": {"a": ""}}',
    "itself": '{"weight_map": {"a": "model.safetensors.index.json"}}',
    "a file that is missing": '{"weight_map": {"a": "two.safetensors"}}',
    "a file without the tensor": '{"weight_map": {"a": "other.safetensors"}}',
    "a long name": '{"weight_map": {"a": "' + "x" * 5000 + '"}}',
    "a name with a zero": '{"weight_map": {"a": "one\\u0000"}}',
    "half a surrogate": '{"weight_map": {"a": "\\ud800"}}',
    "a number": '{"weight_map": {"a": 3}}',
    "null": '{"weight_map": {"a": null}}',
    "a list": '{"weight_map": {"a": ["one.safetensors"]}}',
    "pairs": '{"weight_map": ["ab"]}',
    "an empty mapping": '{"weight_map": {}}',
    "an empty list": '{"weight_map": []}',
    "a number beside text": '{"weight_map": {"a": 1, "b": "x"}}',
    "a folder with its own index": '{"weight_map": {"a": "loop"}}',
}


@pytest.mark.parametrize("what", INDICES)
def test_an_index_that_leads_nowhere_is_refused_by_name(tmp_path: Path, what: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    folder = tmp_path / "model"
    (folder / "loop").mkdir(parents=True)
    (folder / "below").mkdir()
    (folder / "loop" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "loop"}}')
    save_file({"a": torch.ones(2)}, folder / "below" / "one.safetensors")
    save_file({"b": torch.ones(2)}, folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(INDICES[what])
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match="start"):
        pytl.SGD([("a", Parameter(torch.zeros(2)))], sp_decay=0.1, start=folder)


def test_a_shard_s_tensor_that_the_index_does_not_name_is_missed_at_once(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"b": "one.safetensors"}}')
    p = Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    said = refusal(lambda: pytl.SGD([("a", p)], sp_decay=0.1, start=tmp_path).step())
    assert said is None or "start" in said


# Optuna's storage.


def opened(path: Path) -> list[dict[str, Any]]:
    check_sound(path)
    trials = Trials(f"sqlite:///{path}", "task", "digest", seed=0, exclusive=True, parallel=False)
    return list(trials.done())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_storage_is_read_or_refused_by_name(tmp_path: Path, seed: int) -> None:
    path, draws = tmp_path / "search.db", random.Random(seed)
    opened(path)
    whole = path.read_bytes()
    for _ in range(3):
        changed = bytearray(whole)
        for _ in range(1 + 40 * (seed % 2)):
            changed[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        put(path, bytes(changed) if seed < 6 else whole[: draws.randrange(len(whole))])
        said = refusal(lambda: opened(path), (*REFUSALS, StorageError))
        assert said is None or "search.db" in said
