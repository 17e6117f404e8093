"""Ranks for the tests of distributed training: started once, over gloo, outcomes left in a folder."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from rank_jobs import CHECKPOINTED, JOBS, savable, saved_and_continued, two_dimensions
from rank_training import FOUR, ON_TWO, Case, alone, train, trained
from torch import distributed
from torch import multiprocessing as mp
from torch.distributed import checkpoint

IMPORTED = ["safetensors.torch", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp"]
"""Once for all ranks, in a process that has no threads yet: imports take longer than the ranks' work."""


def start_ranks(world: int, folder: Path) -> None:
    """Returns when all have left their outcomes in the folder, or one has died: then those so far are there."""
    mp.get_context("forkserver").set_forkserver_preload(IMPORTED)
    with contextlib.suppress(mp.ProcessExitedException):
        mp.start_processes(rank_main, (world, free_port(), str(folder)), nprocs=world, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def leave() -> NoReturn:
    """Ends a rank's process; at the interpreter's own end a thread of the process group may be left, and abort."""
    distributed.barrier()
    os._exit(0)


def rank_main(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    limit = timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=limit)
    cases: Iterable[Case] = FOUR if world == 4 else ON_TWO
    todo: dict[str, Callable[[Path], Any]] = {str(case): partial(trained, case) for case in cases}
    todo |= JOBS if world == 2 else {"two_dimensions": two_dimensions}
    for name, one in todo.items():
        torch.save(outcome(one, Path(folder)), file_of(Path(folder), name, world, rank))
    leave()


def file_of(folder: Path, name: str, world: int, rank: int) -> Path:
    return folder / f"{name} {rank} of {world}.pt"


def outcome(run: Callable[[Path], Any], folder: Path) -> Any:
    """What it returns, or the text of what it raised: one that fails does not take the others with it."""
    try:
        return run(folder)
    except (Exception, checkpoint.CheckpointException):
        return {"raised": traceback.format_exc()}


def prepare(folder: Path) -> None:
    """What one process leaves for the ranks to load."""
    os.makedirs(folder, exist_ok=True)
    case = alone(CHECKPOINTED["adamw"])
    run, model, opt = savable(case)
    train(run, model, case, opt)
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, folder / "plain-of-one.pt")
    for name, case in CHECKPOINTED.items():
        torch.save(saved_and_continued(folder / f"{name}-of-one", alone(case)), folder / f"{name}-of-one.pt")
