"""What two ranks do in the tests of distributed training beside training; each returns what the tests compare."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rank_training import (
    FIRST_STEPS,
    Case,
    Network,
    batch,
    mesh_of,
    network,
    optimizer_of,
    sharded,
    share_of_rank,
    this_rank,
    train,
    weights_of,
    whole,
    world_size,
    wrapped,
)
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import pytl
from pytl import metrics

SHARDED = Case("fsdp2", "dtnh", "global", method="AdamW", clip="own")


def ready(case: Case, seed: int = 0, steps: int = 0) -> tuple[Any, Any]:
    model = network(case, seed)
    run = wrapped(model, case.wrapper)
    opt = optimizer_of(model, case)
    train(run, model, case, opt, steps=steps)
    return model, opt


def states(folder: Path) -> dict[str, Any]:
    """Which state tensors are not laid out as their parameter, and the numbers beside them."""
    model, opt = ready(SHARDED, steps=1)
    wrong, numbers = [], {}
    for name, p in model.named_parameters():
        for key, value in opt.state.get(p, {}).items():
            if type(value) is Tensor and value.dim() == 0:
                numbers[f"{name} {key}"] = value
            elif not is_laid_out_as(value, p):
                wrong.append(f"{name} {key}")
    stateless = [name for name, p in model.named_parameters() if not opt.state.get(p)]
    return {"wrong": wrong, "numbers": numbers, "stateless": stateless}


def is_laid_out_as(value: Any, p: Any) -> bool:
    return (
        isinstance(value, DTensor)
        and (value.placements, value.device_mesh, value.shape) == (p.placements, p.device_mesh, p.shape)
        and value.to_local().shape == p.to_local().shape
    )


class Collectives(TorchDispatchMode):
    """Counts them, functional or not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor makes of it what it runs on local tensors
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            self.seen[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


COUNTED = {
    "ddp": Case("ddp", "dtnh", "global", clip="own"),
    "ddp with a penalty": Case("ddp", "dtnh", "global", penalty="apart", clip="own"),
    "fsdp2 sum": Case("fsdp2", "sum", "tensor"),
    "fsdp2 tensor": Case("fsdp2", "dtnh", "tensor"),
    "fsdp2 global": Case("fsdp2", "grod", "global", method="AdamW", clip="own"),
    "fsdp2 own rule": Case("fsdp2", "own rule", "global", clip="own"),
    "fsdp2 with a penalty": Case("fsdp2", "dtnh", "global", penalty="apart", clip="own"),
    "hsdp": Case("hsdp-1-2", "dtnh", "global", clip="own"),
    "hsdp of whole replicas": Case("hsdp-2-1", "dtnh", "global", clip="own"),
}


def collectives(folder: Path) -> dict[str, list[dict[str, int]]]:
    """Of the steps after the first."""
    found: dict[str, list[dict[str, int]]] = {}
    for name, case in COUNTED.items():
        model = network(case)
        run = wrapped(model, case.wrapper)
        opt = optimizer_of(model, case)
        take = opt.step
        counts: list[dict[str, int]] = []

        def counted(take: Any = take, counts: Any = counts) -> None:
            with Collectives() as seen:
                take()
            counts.append(dict(seen.seen))

        with mock.patch.object(opt, "step", counted):
            train(run, model, case, opt)
        found[name] = counts[1:]
    return found


class Shadow:
    """An optimizer over whole copies of the weights, which gets the whole gradients: what each step must equal."""

    def __init__(self, model: Any, make: Callable[[Any], Any]) -> None:
        self.model, self.opt = model, make(model.named_parameters())
        self.copies = {name: nn.Parameter(whole(p)) for name, p in model.named_parameters()}
        self.whole = make(self.copies.items())

    def step(self) -> None:
        for name, p in self.model.named_parameters():
            self.copies[name].grad = None if p.grad is None else whole(p.grad)
        self.opt.step()
        self.whole.step()

    def outcome(self) -> dict[str, Any]:
        report, expected = self.opt.report().to_dict(), self.whole.report().to_dict()
        return {
            "weights": weights_of(self.model),
            "expected": [p.detach() for p in self.copies.values()],
            "gram": self.opt.gram.clone(),
            "expected gram": self.whole.gram.clone(),
            "report": report,
            "expected report": expected,
        }


PULLED: dict[str, Any] = {"sp_decay": 0.5, "weight_decay": 0.1}
ADAMW = partial(pytl.AdamW, lr=0.05, direction="dtnh", **PULLED)
BOUND = partial(pytl.SGD, lr=0.1, momentum=0.9, direction="grod", granularity="global", max_grad_norm=0.1, **PULLED)


def shadowed(
    make: Callable[[Any], Any],
    weights: torch.dtype = torch.float32,
    spoil: Callable[[Any, int], None] = lambda model, step: None,
    **options: Any,
) -> dict[str, Any]:
    case = Case("fsdp2", dtype="float32")
    model = sharded(network(case).to(weights), mesh_of("fsdp2"), **options)
    shadow = Shadow(model, make)
    for step in range(FIRST_STEPS):
        x, y = (part[share_of_rank()] for part in batch(step, case))
        cross_entropy(model(x.to(weights)).float(), y).backward()
        spoil(model, step)
        shadow.step()
        shadow.opt.zero_grad()
    return shadow.outcome()


def mixed_precision(folder: Path) -> dict[str, Any]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return shadowed(ADAMW, mp_policy=policy)


def sixteen_bits(folder: Path) -> dict[str, Any]:
    return shadowed(ADAMW, weights=torch.bfloat16)


def without_the_core(folder: Path) -> dict[str, Any]:
    return shadowed(partial(BOUND, foreach=True))


def two_paths(folder: Path) -> dict[str, Any]:
    """Half of the tensors on the core, half in PyTorch."""

    def make(named: Any) -> Any:
        pairs = [*named]
        return BOUND(params=[{"params": pairs[::2], "foreach": True}, {"params": pairs[1::2], "sp_decay": 1.0}])

    return shadowed(make)


def infinite_on_one_rank(folder: Path) -> dict[str, Any]:
    """One element of one shard; the other rank must treat its part as that of a tensor that is not finite."""

    def spoil(model: Any, step: int) -> None:
        if step == FIRST_STEPS - 1 and this_rank() == 1:
            model.stem.weight.grad.to_local()[0, 0] = float("inf")

    return shadowed(partial(BOUND, granularity="tensor"), spoil=spoil)


def later_gradient(folder: Path) -> dict[str, Any]:
    """A parameter takes part from the second step on, and not in the third."""

    def spoil(model: Any, step: int) -> None:
        if step == 1:
            for p in model.unused.parameters():
                p.grad = torch.ones_like(p)

    return shadowed(BOUND, spoil=spoil)


def nothing_on_one_rank(folder: Path) -> dict[str, Any]:
    """One row: the other rank holds nothing of any parameter."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)
    fully_shard(model, mesh=mesh_of("fsdp2"))
    return after_steps(model, 6)


def split_by_columns(folder: Path) -> dict[str, Any]:
    """Shards along dim 1, which are not contiguous in the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Tanh(), nn.Linear(6, 4, bias=False))
    fully_shard(model, mesh=mesh_of("fsdp2"), shard_placement_fn=lambda p: Shard(1))
    return after_steps(model, 8)


def tensor_parallel(folder: Path) -> dict[str, Any]:
    """Shards along both dims, replicated DTensors and plain tensors in one optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.LayerNorm(4))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
    return after_steps(model, 8, same_data=True)


def two_dimensions(folder: Path) -> dict[str, Any]:
    """FSDP2 over one dimension of the mesh, tensor parallel over the other: shards of shards."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    return after_steps(model, 8, same_data=True)


def after_steps(model: Any, features: int, same_data: bool = False) -> dict[str, Any]:
    shadow = Shadow(model, BOUND)
    for step in range(FIRST_STEPS):
        torch.manual_seed(step + (0 if same_data else 100 * this_rank()))
        model(torch.randn(4, features)).pow(2).mean().backward()
        shadow.step()
        shadow.opt.zero_grad()
    return shadow.outcome()


def start_dtypes(folder: Path) -> dict[str, Any]:
    """bfloat16 holds what one rank has of the weight, not what the other has; and holds all of the bias."""
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.weight[-1] = 1 / 3
        model.bias.fill_(0.5)
    expected = weights_of(model)
    fully_shard(model, mesh=mesh_of("fsdp2"))
    opt = pytl.SGD(model.parameters(), lr=0.1, sp_decay=0.1)
    model(torch.ones(2, 3)).sum().backward()
    opt.step()
    starts = [opt.state[p]["start"] for p in model.parameters()]
    return {
        "dtypes": [str(start.dtype) for start in starts],
        "local dtypes": [str(start.to_local().dtype) for start in starts],
        "starts": [whole(start).float() for start in starts],
        "expected": expected,
    }


def overflow_on_one_rank(folder: Path) -> dict[str, Any]:
    """The shard of the last rank has an infinite gradient; the others know only what they are told."""
    case = Case("fsdp2", dtype="float32", method="AdamW")
    model, opt = ready(case, steps=1)
    before, steps = weights_of(model), step_counts(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = (part[share_of_rank()] for part in batch(1, case))
    scaler.scale(cross_entropy(model(x), y)).backward()
    if this_rank() == world_size() - 1:
        model.stem.weight.grad.to_local()[0, 0] = float("inf")
    scaler.step(opt)
    scaler.update()
    return {
        "before": before,
        "after": weights_of(model),
        "scale": scaler.get_scale(),
        "steps": [steps, step_counts(opt)],
    }


def scaled_penalties(folder: Path) -> dict[str, Any]:
    """Powers of two change no bit; an overflow of the penalty, which one rank sees, skips the step on both."""
    case = Case("fsdp2", dtype="float32", penalty="apart")
    found: dict[str, Any] = {}
    for name, scale, size in (("plain", None, 1.0), ("scaled", 1024.0, 1.0), ("overflown", 1024.0, 1e36)):
        model, opt = ready(case)
        before = weights_of(model)
        seen: list[Tensor] = []
        model.head.register_forward_hook(lambda layer, args, out, seen=seen: seen.append(layer.weight[-1, 0]))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(2 if size == 1 else 1):
            x, y = (part[share_of_rank()] for part in batch(step, case))
            out = model(x)
            opt.take_penalty(out.pow(2).mean() + size * seen[-1], scaler)
            scaler.scale(cross_entropy(out, y)).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
        found[name] = {"before": before, "after": weights_of(model), "scale": scaler.get_scale()}
    return found


def scaled_penalty_where_nothing_is(folder: Path) -> dict[str, Any]:
    """One row: the other rank has no element in which an overflow could be told."""
    torch.manual_seed(0)
    model: Any = nn.Linear(6, 1, bias=False)
    fully_shard(model, mesh=mesh_of("fsdp2"))
    return scaled_and_plain(model, lambda: (model(torch.ones(2, 6)),) * 2)


class Pair(nn.Module):
    """``first`` is reached by the penalty alone. The smallest shard is of it on rank 1, of another on rank 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 3, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        second = self.second(x)
        return second, torch.cat([self.first(x[:, :1]), second], dim=1)


def scaled_penalty_beside_the_task(folder: Path) -> dict[str, Any]:
    """A parameter without a gradient of the task is not stepped on, with a scaler as without."""
    torch.manual_seed(0)
    model: Any = fully_shard(Pair(), mesh=mesh_of("fsdp2"))
    return scaled_and_plain(model, lambda: model(torch.ones(2, 4)))


def scaled_and_plain(model: Any, outputs: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """The weights after a step each, with a scale of a power of two and without; first those before."""
    found = {"before": weights_of(model)}
    state = {name: p.to_local().detach().clone() for name, p in model.named_parameters()}
    for name, enabled in (("plain", False), ("scaled", True)):
        for key, p in model.named_parameters():
            p.detach().to_local().copy_(state[key])
        opt = pytl.SGD(model.parameters(), lr=0.1, sp_decay=0.1, direction="dtnh")
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)
        of_task, of_penalty = outputs()
        opt.take_penalty(of_penalty.pow(2).mean(), scaler)
        scaler.scale(of_task.sum()).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        found[name] = weights_of(model)
    return found


def replaced_parameters(folder: Path) -> list[Tensor]:
    """As accelerate does: the optimizer is made before the model is sharded, and is given the new parameters."""
    case = Case("fsdp2", start="")
    model = network(case)
    opt = optimizer_of(model, case)
    sharded(model, mesh_of("fsdp2"))
    opt.param_groups[0]["params"] = [*model.parameters()]
    train(model, model, case, opt)
    return weights_of(model)


def in_backward(folder: Path) -> dict[str, Any]:
    """An optimizer for each parameter, which steps as soon as its gradient is there."""
    case = Case("fsdp2", "dtnh", "tensor")
    found = {}
    for name in ("after", "in"):
        model = sharded(network(case), mesh_of("fsdp2"))
        model.unused.requires_grad_(False)
        trainable = [p for p in model.parameters() if p.requires_grad]
        options = {"lr": 0.1, "direction": "dtnh", **PULLED}
        opts = {p: pytl.SGD([p], **options) for p in trainable}
        if name == "in":
            for p in trainable:
                p.register_post_accumulate_grad_hook(lambda p, opts=opts: (opts[p].step(), opts[p].zero_grad())[0])
        for step in range(FIRST_STEPS):
            x, y = (part[share_of_rank()] for part in batch(step, case))
            cross_entropy(model(x), y).backward()
            for one in opts.values():
                one.step()
                one.zero_grad()
        found[name] = weights_of(model)
    return found


def step_counts(opt: Any) -> list[float]:
    return [float(state["step"]) for state in opt.state.values()]


def unreduced(folder: Path) -> list[Tensor]:
    """As a case of the matrix, but no rank hears of the others' Gram numbers: what the tests must notice."""
    case = Case("fsdp2", "grod", "global")
    model = network(case)
    run = wrapped(model, case.wrapper)
    opt = optimizer_of(model, case)
    take = opt.step

    def alone() -> None:
        with mock.patch.object(distributed, "all_reduce", return_value=None):
            take()

    with mock.patch.object(opt, "step", alone):
        train(run, model, case, opt)
    return weights_of(model)


def refusals(folder: Path) -> dict[str, str]:
    """What is said to options, starts and penalties that cannot be."""
    model, opt = ready(SHARDED)
    named = [*model.named_parameters()]
    start = {name: torch.zeros(p.shape) for name, p in named}
    attempts: dict[str, Callable[[], Any]] = {
        "granularity": lambda: pytl.SGD(named, granularity="layer"),
        "direction": lambda: pytl.SGD(named, direction="up"),
        "missing": lambda: pytl.SGD(named, sp_decay=0.1, start={k: v for k, v in start.items() if k != "stem.weight"}),
        "shape": lambda: pytl.SGD(named, sp_decay=0.1, start=start | {"stem.weight": torch.zeros(3, 7)}),
        "no parameter": lambda: opt.take_penalty(torch.ones((), requires_grad=True) * 2),
        "no scalar": lambda: opt.take_penalty(model.stem.weight.to_local().sum(0)),
    }
    return {name: refusal(attempt) for name, attempt in attempts.items()}


def refusal(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except (Exception, checkpoint.CheckpointException) as error:  # which is no Exception
        return f"{type(error).__name__}: {error}"
    return ""


def penalty_leaves_the_task(folder: Path) -> dict[str, Any]:
    """Gradients of the task, before and after a penalty is taken between two micro-batches."""
    case = Case("fsdp2", penalty="apart")
    model, opt = ready(case)
    x, y = (part[share_of_rank()] for part in batch(0, case))
    cross_entropy(model(x), y).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    addresses = [p.grad.to_local().data_ptr() for p in model.parameters() if p.grad is not None]
    opt.take_penalty(model(x).pow(2).mean())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "before": [whole(g) for g in before],
        "after": [whole(g) for g in grads],
        "in place": addresses == [g.to_local().data_ptr() for g in grads],
    }


# Saving and loading:


def savable(case: Case, seed: int = 0) -> tuple[Any, Any, Any]:
    """torch wants a state of each parameter that asks for gradients."""
    model = network(case, seed)
    model.unused.requires_grad_(False)
    run = wrapped(model, case.wrapper)
    return run, model, optimizer_of(model, case)


CHECKPOINTED = {
    "sgd": Case("fsdp2", "grod", "global", start="", clip="own"),
    "adamw": Case("fsdp2", "dtnh", "tensor", method="AdamW", start=""),
    "ddp": Case("ddp", "dtnh", "tensor", method="AdamW", start=""),
}


def save(path: Path, model: Any, opt: Any) -> None:
    of_model, of_opt = get_state_dict(model, opt)
    checkpoint.save({"model": of_model, "optimizer": of_opt}, checkpoint_id=path)


def load(path: Path, model: Any, opt: Any) -> None:
    of_model, of_opt = get_state_dict(model, opt)
    state: dict[str, Any] = {"model": of_model, "optimizer": of_opt}
    checkpoint.load(state, checkpoint_id=path)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def saved_and_continued(path: Path, case: Case) -> dict[str, Any]:
    """Three steps, a checkpoint, three more."""
    run, model, opt = savable(case)
    train(run, model, case, opt)
    save(path, model, opt)
    return continued(run, model, case, opt)


def loaded_and_continued(path: Path, case: Case, seed: int = 3) -> dict[str, Any]:
    """Into a network of other weights, three steps more."""
    run, model, opt = savable(case, seed)
    if seed < 0:
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
    load(path, model, opt)
    return continued(run, model, case, opt)


def continued(run: Any, model: Any, case: Case, opt: Any) -> dict[str, Any]:
    starts = [whole(state["start"]).double() for state in opt.state.values() if "start" in state]
    train(run, model, case, opt, first=FIRST_STEPS)
    return {"weights": weights_of(model), "starts": starts, "steps": step_counts(opt)}


def save_on_two(folder: Path, name: str) -> dict[str, Any]:
    return saved_and_continued(folder / f"{name}-of-two", CHECKPOINTED[name])


def load_on_two(folder: Path, name: str) -> dict[str, Any]:
    return loaded_and_continued(folder / f"{name}-of-two", CHECKPOINTED[name])


def load_on_two_into_zeros(folder: Path, name: str) -> dict[str, Any]:
    return loaded_and_continued(folder / f"{name}-of-two", CHECKPOINTED[name], seed=-1)


def load_of_one(folder: Path, name: str) -> dict[str, Any]:
    return loaded_and_continued(folder / f"{name}-of-one", CHECKPOINTED[name])


def first_state(folder: Path) -> dict[str, Any]:
    """Before a load, torch takes a step of zero gradients at a rate of zero."""
    _, model, opt = savable(CHECKPOINTED["adamw"])
    before = weights_of(model)
    get_state_dict(model, opt)
    states = [value for state in opt.state.values() for value in state.values()]
    anchored = [p for p in model.parameters() if "start" in opt.state.get(p, {})]
    return {
        "before": before,
        "after": weights_of(model),
        "finite": all(bool(whole(value).isfinite().all()) for value in states),
        "starts": [whole(opt.state[p]["start"]).double() for p in anchored],
        "weights": [whole(p) for p in anchored],
    }


def full_state(folder: Path) -> dict[str, Any]:
    """The whole state on each rank, in an ordinary file; and back into another network."""
    case = CHECKPOINTED["adamw"]
    run, model, opt = savable(case)
    train(run, model, case, opt)
    options = StateDictOptions(full_state_dict=True)
    of_model, of_opt = get_state_dict(model, opt, options=options)
    path = folder / f"full-{this_rank()}.pt"
    torch.save({"model": of_model, "optimizer": of_opt}, path)
    expected = continued(run, model, case, opt)
    run, model, opt = savable(case, seed=3)
    state = torch.load(path, weights_only=True)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options)
    return {"expected": expected, "found": continued(run, model, case, opt)}


def state_of_one_process(folder: Path) -> dict[str, Any]:
    """What one process saved by ``torch.save`` is loaded as it stands where parameters are sharded."""
    case = CHECKPOINTED["adamw"]
    run, model, opt = savable(case, seed=3)
    state = torch.load(folder / "plain-of-one.pt", weights_only=True)
    set_model_state_dict(model, state["model"], options=StateDictOptions(full_state_dict=True))
    opt.load_state_dict(state["optimizer"])
    return continued(run, model, case, opt)


def checkpoint_of_another(folder: Path) -> dict[str, Any]:
    _, model, opt = savable(CHECKPOINTED["adamw"])
    other = sharded(Network(width=9).double(), mesh_of("fsdp2"))
    other.unused.requires_grad_(False)
    theirs = optimizer_of(other, CHECKPOINTED["adamw"])
    save(folder / "another", other, theirs)
    before = weights_of(model)
    said = refusal(lambda: load(folder / "another", model, opt))
    return {"said": said, "before": before, "after": weights_of(model)}


def resumed(folder: Path, case: Case) -> dict[str, Any]:
    """Each rank keeps its own file, and reads nothing from it but tensors and numbers."""
    model, opt = ready(case, steps=FIRST_STEPS)
    file = folder / f"{case.method}-of-rank-{distributed.get_rank()}.pt"
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, file)
    train(model, model, case, opt, first=FIRST_STEPS)
    again, opt_again = ready(case, seed=3)
    state = torch.load(file, weights_only=True)
    again.load_state_dict(state["model"])
    opt_again.load_state_dict(state["optimizer"])
    train(again, again, case, opt_again, first=FIRST_STEPS)
    return {"expected": weights_of(model), "found": weights_of(again)}


def resumed_sgd(folder: Path) -> dict[str, Any]:
    return resumed(folder, Case("fsdp2", "grod", "global", clip="own"))


def resumed_adamw(folder: Path) -> dict[str, Any]:
    return resumed(folder, Case("fsdp2", "dtnh", "tensor", method="AdamW", start=""))


def copied(folder: Path) -> dict[str, Any]:
    """A deep copy of the optimizer has parameters of its own, which step alike."""
    model, opt = ready(SHARDED, steps=2)
    twin = copy.deepcopy(opt)
    x, y = (part[share_of_rank()] for part in batch(2, SHARDED))
    cross_entropy(model(x), y).backward()
    ours, theirs = ([p for group in one.param_groups for p in group["params"]] for one in (opt, twin))
    for p, q in zip(ours, theirs, strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    before = [whole(q) for q in theirs]
    opt.step()
    untouched = all(torch.equal(whole(q), old) for q, old in zip(theirs, before, strict=True))
    twin.step()
    return {
        "expected": [whole(p) for p in ours],
        "found": [whole(q) for q in theirs],
        "untouched": untouched,
    }


def recorded(folder: Path) -> dict[str, Any]:
    """What the first rank's recorder has written, by pytl's optimizer and by torch's."""
    return {kind: recorded_by(kind, SHARDED, folder) for kind in ("pytl", "torch")}


def recorded_by(kind: str, case: Case, folder: Path) -> list[dict[str, Any]]:
    run, model, opt = savable(case)
    if kind == "torch":
        opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    first = this_rank() == 0
    path = folder / f"{kind}-{case.wrapper}.jsonl"
    recorder = pytl.Recorder(model, opt, path if first else None, every=1)
    for step in range(FIRST_STEPS):
        x, y = (part[share_of_rank()] for part in batch(step, case))
        cross_entropy(run(x), y).backward()
        opt.step()
        recorder.step()
        opt.zero_grad()
    recorder.close()
    return metrics.read(path) if first else []


JOBS: dict[str, Callable[[Path], Any]] = {
    function.__name__: function
    for function in (
        states,
        collectives,
        unreduced,
        mixed_precision,
        sixteen_bits,
        without_the_core,
        two_paths,
        infinite_on_one_rank,
        later_gradient,
        nothing_on_one_rank,
        split_by_columns,
        tensor_parallel,
        start_dtypes,
        overflow_on_one_rank,
        scaled_penalties,
        in_backward,
        replaced_parameters,
        penalty_leaves_the_task,
        first_state,
        full_state,
        state_of_one_process,
        checkpoint_of_another,
        resumed_sgd,
        resumed_adamw,
        copied,
        recorded,
        refusals,
    )
} | {
    f"{function.__name__} {name}": partial(function, name=name)
    for function in (save_on_two, load_on_two, load_on_two_into_zeros, load_of_one)
    for name in CHECKPOINTED
}
JOBS |= {function.__name__: function for function in (scaled_penalty_beside_the_task, scaled_penalty_where_nothing_is)}
