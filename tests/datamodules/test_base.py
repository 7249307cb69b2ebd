"""Shared by all DataModules: samplers, seeds, the order of samples when a run is resumed, clean inputs."""

import os
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.base import SSLDataModule
from datamodules.images.arrays import Digits
from datamodules.images.folder import ImageFolder
from datamodules.samplers import EpochSampler, SampleDataset, ShardSampler, interleaved
from datamodules.seeding import mix_seed, run_seed
from datamodules.transforms.base import BatchTransform


class Numbers(SampleDataset):
    """Sample i is the number i."""

    def __init__(self, n: int) -> None:
        self.n, self.epochs = n, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        values = torch.tensor(indices)
        return {"input": values.to(torch.uint8), "label": values}


class Shifted(BatchTransform):
    """Two views: the images plus one draw per sample."""

    def draw(self, images, generator):
        return {"shift": torch.rand(len(images), 1, 1, 1, generator=generator)}

    def forward(self, images, params):
        return {"views": [images + params["shift"], images], "mask": images > 0.5}


class Data(SSLDataModule):
    num_classes = 7

    def __init__(self, n: int = 10, **kwargs) -> None:
        super().__init__(**kwargs)
        self.numbers = Numbers(n)

    def dataset(self, split):
        return self.numbers


def started(datamodule: SSLDataModule, done: int = 0, **trainer) -> SSLDataModule:
    """As in a Trainer that has drawn ``done`` batches of its epoch."""
    progress = SimpleNamespace(is_last_batch=False, current=SimpleNamespace(ready=done))
    validation = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0)))
    state = {"training": True, "validating": False, "sanity_checking": False, "current_epoch": 0}
    state |= {"global_rank": 0, "world_size": 1} | trainer
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress, val_loop=validation))
    precision = SimpleNamespace(convert_input=lambda batch: batch)  # what full precision does
    fn = SimpleNamespace(fn="fit")
    datamodule.trainer = SimpleNamespace(
        fit_loop=loop, precision_plugin=precision, **{"state": fn, "strategy": None, **state}
    )
    return datamodule


def order(n=100, batch_size=8, seed=0, rank=0, world_size=1, epoch=0, done=0) -> list[int]:
    sampler = EpochSampler(Numbers(n), batch_size, seed, rank, world_size, started(Data(), done))
    sampler.set_epoch(epoch)
    return list(sampler)


# ---- samplers ----------------------------------------------------------------------------------------------


def test_epoch_order_is_a_function_of_seed_and_epoch():
    assert sorted(order()) == list(range(100)) and order() != list(range(100))
    torch.manual_seed(1), np.random.seed(1)
    assert order(seed=3, epoch=5) == order(seed=3, epoch=5)
    different = [order(seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(one) for one in different}) == 9


@pytest.mark.parametrize("n", [96, 101])
def test_the_ranks_together_are_the_single_process_batch(n):
    one = order(n, epoch=2)
    ranks = [order(n, batch_size=4, rank=rank, world_size=2, epoch=2) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == n // 2 and not set(ranks[0]) & set(ranks[1])
    for step in range(n // 8):
        joined = [index for rank in ranks for index in rank[step * 4 : step * 4 + 4]]
        assert sorted(joined) == sorted(one[step * 8 : step * 8 + 8])


def test_a_resumed_epoch_starts_where_it_stopped():
    for world_size in (1, 2):
        for rank in range(world_size):
            whole = order(rank=rank, world_size=world_size, epoch=1)
            assert order(rank=rank, world_size=world_size, epoch=1, done=3) == whole[3 * 8 :]


def test_the_data_set_learns_the_epoch():
    dataset = Numbers(10)
    EpochSampler(dataset, 2, 0, 0, 1, started(Data())).set_epoch(4)
    assert dataset.epochs == [4]


@pytest.mark.parametrize(("n", "world_size"), [(10, 1), (10, 3), (11, 4), (2, 3)])
def test_evaluation_counts_every_sample_once(n, world_size):
    seen = []
    for rank in range(world_size):
        data = started(Data(n, batch_size=3), global_rank=rank, world_size=world_size)
        loader = data.val_dataloader()[0]
        batches = [batch["label"] for batch in loader]
        assert len(loader) == len(batches)
        mine = torch.cat(batches).tolist() if batches else []
        assert mine == interleaved(Numbers(n))[rank::world_size].tolist()
        seen += mine
    assert sorted(seen) == list(range(n))
    assert len(ShardSampler(Numbers(n), 0, world_size)) == -(-n // world_size)
    assert list(ShardSampler(Numbers(n), 0, world_size)) == list(range(0, n, world_size))


@pytest.mark.parametrize(("n", "block"), [(1, 1), (2, 1), (103, 1), (96, 8), (100, 8), (3, 8)])
def test_the_order_of_validation_is_spread_evenly(n, block):
    """Of each beginning every tenth of the data set holds its share, give or take two blocks."""
    numbers = Numbers(n)
    numbers.block = block
    order = interleaved(numbers)
    assert sorted(order.tolist()) == list(range(n)) and np.array_equal(order, interleaved(numbers))
    if block == 8:
        assert all((np.diff(order[i : i + 8]) == 1).all() for i in range(0, n // 8 * 8, 8) if n % 8 == 0)
    for first in range(1, n):
        tenths = np.bincount(order[:first] * 10 // n, minlength=10)
        assert abs(tenths - first / 10).max() <= 2 * block


def test_a_limited_validation_sees_every_class(tmp_path):
    """Files come sorted by class; val and bank do not, however few batches of them are looked at."""
    for name, files in (("a", 60), ("b", 60), ("c", 120)):
        (tmp_path / name).mkdir()
        for i in range(files):
            Image.new("L", (2, 2), i).save(tmp_path / name / f"{i:03d}.pgm")
    data = ImageFolder(
        str(tmp_path), image_size=2, channels=1, mean=[0.5], std=[0.5], val_fraction=0.5, batch_size=32
    )
    for loader in data.val_dataloader():
        counts = torch.bincount(next(iter(loader))["label"], minlength=3).tolist()
        assert all(abs(a - b) <= 2 for a, b in zip(counts, (8, 8, 16), strict=True)), counts


def test_the_bank_is_a_fixed_choice_of_the_training_split():
    torch.manual_seed(1)
    first = [batch["label"] for batch in Data(50, bank_size=20, batch_size=20).val_dataloader()[1]]
    second = [batch["label"] for batch in Data(50, bank_size=20, batch_size=20).val_dataloader()[1]]
    assert len(first) == 1 and torch.equal(first[0], second[0]) and len(first[0].unique()) == 20
    assert len(next(iter(Data(10, bank_size=20, batch_size=20).val_dataloader()[1]))["label"]) == 10


def test_making_loaders_and_drawing_batches_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    data = started(Data(20, batch_size=4))
    for loader in (data.train_dataloader(), *data.val_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


# ---- seeds and hyper-parameters ----------------------------------------------------------------------------


def test_mix_seed():
    seeds = {mix_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512 and all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2) == mix_seed(1, 2) != mix_seed(2, 1)
    bits = np.array([[seed >> i & 1 for i in range(63)] for seed in seeds])
    assert (
        abs(bits.mean(0) - 0.5).max() < 0.12
    )  # every bit is as good as a coin: 5 standard deviations of 512 throws


def test_run_seed(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert run_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert run_seed() == 17


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("num_workers", -1), ("bank_size", 0)])
def test_bad_knobs(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        Data(**{name: value})


def test_fewer_samples_than_a_batch():
    with pytest.raises(ValueError, match=r"Data has 10 training samples.*batch of 16 .*--data.batch_size 5"):
        started(Data(10, batch_size=8), world_size=2).setup("fit")
    started(Data(10, batch_size=5), world_size=2).setup("fit")


def test_a_checkpoint_of_another_batch_size_is_refused():
    state = started(Data(batch_size=4)).state_dict()
    started(Data(batch_size=4)).load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size 4 on 1 processes, now it is 8 on 1"):
        started(Data(batch_size=8)).load_state_dict(state)


# ---- views -------------------------------------------------------------------------------------------------


def views_of(datamodule: SSLDataModule, loader: int = 0) -> dict:
    batch = datamodule.dataset("val").__getitems__(range(6))
    return datamodule.on_after_batch_transfer(batch, loader)


def test_views_are_added_and_the_input_stays_clean():
    data, plain = Digits(views=Shifted()), Digits()
    batch = data.dataset("val").__getitems__(range(6))
    raw = batch["input"].clone()
    out = data.transform(batch, torch.Generator().manual_seed(0))
    assert set(out) == {"input", "label", "views", "mask"} and set(batch) == {"input", "label"}
    assert torch.equal(batch["input"], raw)
    assert torch.equal(out["input"], plain.transform(batch, None)["input"])
    assert torch.equal(out["views"][1], out["input"])  # views are standardized like the input
    torch.testing.assert_close(data.unstandardize(out["input"]), raw / 255)
    assert out["mask"].dtype == torch.bool  # and a mask is not
    assert set(data.transform(batch, None)) == {"input", "label"}


def test_views_are_a_function_of_seed_rank_epoch_and_batch(monkeypatch):
    def drawn(done=0, seed=0, **trainer) -> torch.Tensor:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        torch.manual_seed(5)
        return views_of(started(Digits(views=Shifted()), done, **trainer))["views"][0]

    assert torch.equal(drawn(), drawn())
    others = [drawn(done=1), drawn(seed=1), drawn(global_rank=1), drawn(current_epoch=1)]
    assert all(not torch.equal(drawn(), other) for other in others)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    views_of(started(Digits(views=Shifted())))
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_draws_the_same_views_every_time_and_none_for_the_bank():
    def validated(epoch: int, loader: int = 0) -> dict:
        data = started(Digits(views=Shifted()), training=False, validating=True, current_epoch=epoch)
        return views_of(data, loader)

    assert torch.equal(validated(0)["views"][0], validated(3)["views"][0])
    assert set(validated(0, loader=1)) == {"input", "label"}


def test_a_worker_ends_by_its_parents_signal_only():
    """SLURM signals every process of a job, and the run wants to finish its batch."""
    data = Digits(num_workers=1, batch_size=8)
    loader = data._loader(Numbers(800), ShardSampler(Numbers(800), 0, 1), training=True)  # keeps its worker
    batches = iter(loader)
    assert next(batches)["label"][0] == 0
    [worker] = loader._iterator._workers
    for name in ("TERM", "INT", "USR1", "USR2"):
        subprocess.run(["sh", "-c", f"kill -{name} {worker.pid}"], check=True)
    assert [int(batch["label"][0]) for batch in batches] == list(range(8, 800, 8))
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == 0
