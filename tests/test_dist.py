import datetime

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from utils import dist
from utils.errors import UserError


def test_one_process(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    dist.init(torch.device("cpu"))
    assert not dist.is_distributed() and dist.is_main()
    assert (dist.rank(), dist.world_size(), dist.local_rank()) == (0, 1, 0)
    values = torch.ones(2)
    assert dist.all_sum(values) is values and values.tolist() == [1, 1]
    assert dist.gather_objects("x") == ["x"]
    assert dist.from_main(lambda: 7) == 7
    dist.broadcast([values])
    dist.shutdown()


def test_half_set_environment_is_explained(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="torchrun"):
        dist.init(torch.device("cpu"))


def worker(rank, port, folder):
    import os

    environment = {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ.update(environment)
    dist.init(torch.device("cpu"))
    assert dist.is_distributed() and dist.world_size() == 2
    assert dist.rank() == dist.local_rank() == rank and dist.is_main() == (rank == 0)
    values = torch.tensor([1.0, 10.0 * rank])
    assert dist.all_sum(values) is values and values.tolist() == [2, 10]
    counts = torch.tensor(rank + 1)
    assert dist.all_sum(counts).item() == 3
    big = np.full((100_000 * (rank + 1), 7), rank, np.float64)  # up to 11 MB, unequal sizes
    gathered = dist.gather_objects(big)
    assert [len(part) for part in gathered] == [100_000, 200_000]
    assert [part[0, 0] for part in gathered] == [0, 1]
    assert dist.gather_objects([]) == [[], []]
    assert dist.from_main(lambda: f"made by {rank}") == "made by 0"
    tensors = [torch.full((2,), float(rank)), torch.tensor(rank)]
    dist.broadcast(tensors)
    assert [tensor.sum().item() for tensor in tensors] == [0, 0]
    dist.shutdown()
    assert not dist.is_distributed() and dist.rank() == 0
    (folder / f"done{rank}").touch()


def test_two_processes(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, tmp_path), nprocs=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["done0", "done1"]


def test_waiting_outlasts_an_evaluation():
    assert dist.TIMEOUT >= datetime.timedelta(hours=2)
