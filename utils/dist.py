"""Several processes of one training, as `torchrun` starts them; with one process all is a no-op."""

import os
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import Tensor, distributed

from utils.errors import UserError

# An evaluation or the reading of a large data set on one rank must not end the others.
TIMEOUT = timedelta(hours=2)


def init(device: torch.device) -> None:
    """Joins the processes that torchrun started; does nothing when there is only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        raise UserError(
            "WORLD_SIZE is set but RANK or MASTER_ADDR is not: start several processes with "
            "torchrun --nproc_per_node N train.py ..., or unset WORLD_SIZE"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Objects and tensors on the host travel over gloo, those on the device over nccl.
        distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT, device_id=device)
    else:
        distributed.init_process_group("gloo", timeout=TIMEOUT)


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    return distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    return distributed.get_world_size() if is_distributed() else 1


def local_rank() -> int:
    """Number of this process on its machine; known before `init`, to choose the device by."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def all_sum(tensor: Tensor) -> Tensor:
    """Sums the tensor over all processes, in place."""
    if is_distributed():
        distributed.all_reduce(tensor)
    return tensor


def broadcast(tensors: list[Tensor], source: int = 0) -> None:
    """Gives every process the tensors of one of them, in place."""
    if is_distributed():
        for tensor in tensors:
            distributed.broadcast(tensor, source)


def gather_objects(value) -> list:
    """Every process' value, in the order of ranks, on every process."""
    if not is_distributed():
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def from_main(make: Callable):
    """What `make` returns on the main process, on every process; a user's error likewise."""
    found = [None, None]  # what it returns, or its error
    if is_main():
        try:
            found = [make(), None]
        except UserError as error:
            found = [None, error]
    if is_distributed():
        distributed.broadcast_object_list(found, 0)
    if found[1]:
        raise found[1]
    return found[0]


def shutdown() -> None:
    if is_distributed():
        distributed.destroy_process_group()
