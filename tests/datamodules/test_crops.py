"""Views cut where a photograph is decoded: torchvision's crops, pixel by pixel and as a distribution,
whatever the number of workers, processes and interruptions. The photographs are the two of scikit-learn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from datamodules.base import keep_batch
from datamodules.images.crops import ViewCrops
from datamodules.images.decode import decode_image, read_image
from datamodules.images.folder import FolderDataset, ImageFolder
from datamodules.images.module import ArrayDataset
from datamodules.images.pack import make_shards
from datamodules.images.shards import Shards
from datamodules.samplers import EpochSampler
from datamodules.transforms.boxes import TRIES, central_box, random_box, random_boxes
from datamodules.transforms.masks import MAEViews, RandomBlock
from datamodules.transforms.recipes import DINOViews, SimCLRViews
from datamodules.transforms.views import NUMBERS, TwoViews, View, Views
from tests.conftest import TORCH_2_6
from tests.resume import STOP_AT, check, three_runs

PHOTOGRAPHS = [np.asarray(image) for image in load_sample_images().images]  # (427, 640, 3) each
SMALL = (60, 90)
PLAIN = {"flip_p": 0.5, "crop_scale": (0.08, 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four small photographs in two classes: parts of the two, most of them lying, some upright."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(24):
        image = PHOTOGRAPHS[number % 2]
        height, width = SMALL if number % 3 else SMALL[::-1]
        top, left = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
        target = root / f"class{number % 2}" / f"{number}.jpg"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(image[top : top + height, left : left + width]).save(target, quality=90)
    return root


def saved(path: Path, image: np.ndarray, kind: str) -> Image.Image:
    """Write a photograph in some way; returns what Pillow decodes."""
    picture, options = Image.fromarray(image), {}
    if kind == "turned":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        options["exif"] = exif
    if kind in ("L", "CMYK"):
        picture = picture.convert(kind)
    picture.save(path, format="PNG" if kind == "png" else "JPEG", **options)
    decoded = Image.open(path)
    decoded.load()
    if kind == "turned":
        decoded = decoded.transpose(Image.Transpose.ROTATE_270)
    return decoded.convert("RGB")


# ---- pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "turned", "png", "L", "CMYK"])
def test_whole_images_are_decoded_as_by_pillow(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    expected = saved(path, PHOTOGRAPHS[0], kind)
    assert np.array_equal(decode_image(str(path), 3), np.asarray(expected))
    assert np.array_equal(decode_image(b"unused", 3, path.read_bytes()), np.asarray(expected))
    if kind == "plain":
        gray = np.asarray(expected.convert("L"))[:, :, None]
        assert np.array_equal(decode_image(str(path), 1), gray)


@pytest.mark.parametrize("kind", ["plain", "turned", "png"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_equal_torchvisions(tmp_path: Path, interpolation: str, kind: str) -> None:
    view = View(96, interpolation=interpolation, **PLAIN)
    crops, mode = ViewCrops(TwoViews(view, view), (3, 96, 96), 110), InterpolationMode(interpolation)
    images = []
    for number, photograph in enumerate(PHOTOGRAPHS * 8):
        path = tmp_path / str(number % 2)
        if number < 2:
            images.append(saved(path, photograph, kind))
    decoded = (decode_image(str(tmp_path / str(i % 2)), 3) for i in range(16))
    cut = crops(decoded, range(16))["crops"][0]
    assert cut.shape == (16, 2, 3, 96, 96) and cut.dtype == torch.uint8
    shrunk = 0
    for index in range(16):
        image = images[index % 2]
        for number, numbers in enumerate(crops._draw(1, index)[1]):
            box, flip = view.geometry(numbers, image.height, image.width)
            shrunk += min(box[2:]) > 2 * 96
            for source in (image, tv.to_dtype(tv.to_image(image), torch.float32, scale=True)):
                expected = tv.resized_crop(source, *box, [96, 96], mode, antialias=True)
                expected = tv.horizontal_flip(expected) if flip else expected
                if isinstance(expected, Image.Image):
                    expected = tv.to_image(expected) / 255
                difference = (cut[index, number] / 255 - expected.clamp(0, 1)).abs().mean()
                assert difference < 0.5 / 255, (index, number, difference * 255)
    assert shrunk > 5  # antialiasing matters


def test_input_of_validation_is_what_it_was_and_the_rest_is_a_view(folder: Path) -> None:
    data = ImageFolder(str(folder), image_size=32, views=SimCLRViews(32))
    validation, paths = data.dataset("val"), data.files("val")
    batch = validation.__getitems__(range(len(paths)))
    expected = np.stack([read_image(os.fsencode(path), 32, 3, 37) for path in paths])
    assert np.array_equal(batch["input"].permute(0, 2, 3, 1).numpy(), expected)
    assert batch["crops"][0].shape == (len(paths), 2, 3, 32, 32)
    assert "crops" not in data.dataset("bank").__getitems__([0]) | data.dataset("test").__getitems__([0])
    train = data.dataset("train").__getitems__([3, 1])
    assert torch.equal(train["input"], train["crops"][0][:, 0])


def test_without_a_view_as_large_the_input_is_a_square_at_a_random_position(folder: Path) -> None:
    data = ImageFolder(str(folder), image_size=32, decode_size=40, views=SimCLRViews(16))
    train, paths = data.dataset("train"), data.files("train")
    for epoch in (0, 1):
        train.set_epoch(epoch)
        batch = train.__getitems__(range(4))
        for index in range(4):
            position = train.crops._draw(epoch + 1, index)[0]
            square = read_image(os.fsencode(paths[index]), 32, 3, 40, position)
            assert np.array_equal(batch["input"][index].permute(1, 2, 0).numpy(), square)


def test_views_without_a_crop_are_cut_from_the_same_square(folder: Path) -> None:
    whole = View(32, crop_scale=None, flip_p=0)
    data = ImageFolder(str(folder), image_size=32, decode_size=40, views=TwoViews(View(32), whole))
    crops = ViewCrops(Views(whole, View(16, crop_scale=None, flip_p=0)), (3, 32, 32), 40)
    images = [decode_image(path, 3) for path in data.files("train")[:3]]
    batch = crops(iter(images), range(3))
    square = read_image(os.fsencode(data.files("train")[2]), 32, 3, 40, crops._draw(1, 2)[0])
    assert np.array_equal(batch["crops"][0][2, 0].permute(1, 2, 0).numpy(), square)
    assert torch.equal(batch["input"], batch["crops"][0][:, 0])
    small = tv.resize(torch.tensor(square).permute(2, 0, 1), [16, 16], antialias=True)
    rounding = 1 if TORCH_2_6 else 0  # torchvision 0.21 rounds differently
    assert (batch["crops"][1][2, 0].int() - small.int()).abs().max() <= rounding


# ---- distribution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(427, 640), (640, 427), (50, 400), (8, 8)])
def test_one_box_is_that_of_the_batch(height: int, width: int) -> None:
    numbers = torch.rand(2000, 2 * TRIES + 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options: Any = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    batch = random_boxes(numbers, height, width, **options)
    single = [random_box(row, height, width, **options) for row in numbers.tolist()]
    assert batch.tolist() == [list(box) for box in single]
    assert (height != 50) or central_box(50, 400, (3 / 4, 4 / 3)) in single


def overlap(one: tuple[int, ...], two: tuple[int, ...]) -> float:
    """Intersection over union of two boxes."""
    rows = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    columns = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    shared = max(0, rows) * max(0, columns)
    return shared / (one[2] * one[3] + two[2] * two[3] - shared)


@pytest.mark.parametrize(("height", "width"), [(427, 640), (375, 500), (500, 375), (300, 1000)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.4)])
def test_shares_ratios_and_overlaps_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    n = 3000
    view = View(224, crop_scale=scale)
    rng = np.random.default_rng(0)
    ours = [view.geometry(numbers, height, width)[0] for numbers in rng.random((2 * n, NUMBERS)).tolist()]
    torch.manual_seed(0)
    image, transform = torch.empty(3, height, width), v2.RandomResizedCrop(224, scale=scale)
    theirs = [
        tuple(p[k] for k in ("top", "left", "height", "width"))
        for p in (transform.make_params([image]) for _ in range(2 * n))
    ]
    for measure in (
        lambda boxes: [box[2] * box[3] / (height * width) for box in boxes],
        lambda boxes: [box[3] / box[2] for box in boxes],
        lambda boxes: [(box[0] + box[2] / 2) / height for box in boxes],
        lambda boxes: [(box[1] + box[3] / 2) / width for box in boxes],
        lambda boxes: [overlap(a, b) for a, b in zip(boxes[::2], boxes[1::2], strict=True)],
    ):
        a, b = np.sort(measure(ours)), np.sort(measure(theirs))
        at = np.sort(np.concatenate([a, b]))
        distance = np.abs(np.searchsorted(a, at, "right") - np.searchsorted(b, at, "right")).max() / len(a)
        assert distance < 1.63 * (2 / len(a)) ** 0.5  # Kolmogorov-Smirnov, 1 %


def test_flips_have_their_probability() -> None:
    numbers = np.random.default_rng(0).random((4000, NUMBERS)).tolist()
    flips = np.mean([View(8, flip_p=0.3).geometry(row, 20, 30)[1] for row in numbers])
    assert abs(flips - 0.3) < 0.03


# ---- a pure function of seed, epoch, sample and view -------------------------------------------------------


def crops_of(dataset: Any, indices: list[int]) -> Tensor:
    return dataset.__getitems__(indices)["crops"][0]


def test_crops_are_a_function_of_seed_epoch_sample_and_view(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(seed: int = 0, epoch: int = 0, views: Views | None = None) -> FolderDataset:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        dataset = ImageFolder(str(folder), image_size=32, views=views or SimCLRViews(32)).dataset("train")
        dataset.set_epoch(epoch)
        return dataset

    first = crops_of(train(), [0, 1, 2, 3])
    assert torch.equal(first[[2, 0]], crops_of(train(), [2, 0]))
    for other in (train(seed=1), train(epoch=1)):
        assert (crops_of(other, [0, 1, 2, 3]) != first).flatten(2).any(2).all()
    assert not torch.equal(first[:, 0], first[:, 1])
    more = Views(*SimCLRViews(32).views, View(32))
    assert torch.equal(crops_of(train(views=more), [0, 1, 2, 3])[:, :2], first)


def test_validation_cuts_the_same_views_in_every_epoch(folder: Path) -> None:
    dataset = ImageFolder(str(folder), image_size=32, views=SimCLRViews(32)).dataset("val")
    first = crops_of(dataset, [0, 1])
    dataset.set_epoch(5)
    assert torch.equal(crops_of(dataset, [0, 1]), first)


def test_workers_that_outlive_an_epoch_cut_what_one_process_cuts(folder: Path) -> None:
    cut = []
    for workers in (0, 2):
        dataset = ImageFolder(str(folder), image_size=32, views=DINOViews(32, num_local=2)).dataset("train")
        loader = DataLoader(
            dataset, 4, collate_fn=keep_batch, num_workers=workers, persistent_workers=workers > 0
        )
        for epoch in range(2):
            dataset.set_epoch(epoch)
            cut.append([group for batch in loader for group in (*batch["crops"], batch["input"])])
    assert all(torch.equal(a, b) for a, b in zip(cut[0] + cut[1], cut[2] + cut[3], strict=True))
    assert not torch.equal(cut[0][0], cut[1][0])


def test_ranks_share_the_samples_and_each_sample_is_cut_the_same(folder: Path) -> None:
    data = ImageFolder(str(folder), image_size=32, views=SimCLRViews(32), batch_size=3)
    dataset = data.dataset("train")

    def cut(rank: int, world: int) -> dict[int, Tensor]:
        sampler = EpochSampler(dataset, 3, 0, rank, world, data)
        sampler.set_epoch(1)
        indices = list(sampler)
        return dict(zip(indices, crops_of(dataset, indices), strict=True))

    alone, one, two = cut(0, 1), cut(0, 2), cut(1, 2)
    assert not one.keys() & two.keys() and len(one) == len(two) == len(dataset) // 2
    for index, crops in (one | two).items():
        assert torch.equal(crops, alone[index])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_inside_an_epoch_goes_on_exactly(folder: Path, tmp_path: Path, workers: int) -> None:
    options = ["--data", "ImageFolder", "--data.root", str(folder), "--data.image_size", "16"]
    options += ["--data.synthetic", "false", "--data.batch_size", "2", "--data.views", "SimCLRViews"]
    options += ["--data.views.size", "16", "--data.num_workers", str(workers)]
    options += ["--model.encoder.in_channels", "3"]
    check(three_runs("configs/digits/simclr.yaml", tmp_path, options), tmp_path, stopped_after=STOP_AT)


# ---- through the DataModule --------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_colors_follow_on_the_crops_as_on_images(folder: Path) -> None:
    data = ImageFolder(str(folder), image_size=32, views=SimCLRViews(32, small=False))
    raw = data.dataset("train").__getitems__(range(8))
    batch = data.transform(raw, generator())
    assert sorted(batch) == ["input", "label", "views"]
    params = data.views.draw(data.decode(raw["input"]), generator())
    for number, view in enumerate(data.views.views):
        own = {key[2:]: value for key, value in params.items() if key.startswith(f"{number}.")}
        del own["box"], own["flip"]
        expected = view.render(data.decode(raw["crops"][0][:, number]), own)
        torch.testing.assert_close(data.unstandardize(batch["views"][number]), expected)
    assert sorted(data.transform(raw, None)) == ["input", "label"]


def test_on_an_accelerator_the_views_are_rendered_together(folder: Path) -> None:
    data = ImageFolder(str(folder), image_size=32, views=DINOViews(32, num_local=3))
    raw = data.dataset("train").__getitems__(range(4))
    decoded = data.decode(raw["input"])
    params = data.views.with_crops(data.views.draw(decoded, generator()), raw["crops"])
    separate = data.views(decoded, params)["views"]
    split = [{k[2:]: v for k, v in params.items() if k.startswith(f"{i}.")} for i in range(5)]
    together = data.views._render_together(decoded, split)
    for one, other in zip(separate, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_multi_crop_and_mae(folder: Path) -> None:
    data = ImageFolder(str(folder), image_size=56, views=DINOViews(56, small=False))
    batch = data.transform(data.dataset("train").__getitems__(range(3)), generator())
    assert [tuple(view.shape) for view in batch["views"]] == [(3, 3, 56, 56)] * 2 + [(3, 3, 24, 24)] * 8
    data = ImageFolder(str(folder), image_size=32, views=MAEViews(32, patch_size=8))
    batch = data.transform(data.dataset("train").__getitems__(range(3)), generator())
    assert batch["mask"].shape == (3, 1, 32, 32) and torch.equal(batch["views"][0], batch["input"])


def test_shards_cut_the_same_way(folder: Path, tmp_path: Path) -> None:
    make_shards(folder, tmp_path / "shards")
    data = Shards(str(tmp_path / "shards"), image_size=32, views=SimCLRViews(32))
    dataset = data.dataset("train")
    members = [member[512:] for member in dataset._contents(range(12))]
    expected = data.view_crops("train")((decode_image(b"", 3, member) for member in members), range(12))
    batch = dataset.__getitems__(range(12))
    assert torch.equal(batch["crops"][0], expected["crops"][0])
    assert torch.equal(batch["input"], expected["input"])


def test_what_is_not_views_and_what_is_in_memory_stay_as_they_are(folder: Path) -> None:
    for options in ({"views": None}, {"views": RandomBlock()}, {"views": SimCLRViews(32), "in_memory": True}):
        data = ImageFolder(str(folder), image_size=32, **options)
        assert sorted(data.dataset("train").__getitems__([0])) == ["input", "label"]
    assert isinstance(data.dataset("train"), ArrayDataset)


def test_a_broken_file_among_photographs_is_replaced_or_named(folder: Path, tmp_path: Path) -> None:
    paths = np.array(sorted(os.fsencode(path) for path in folder.rglob("*.jpg")))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(os.fsdecode(paths[0])).read_bytes()[:900])
    dataset = FolderDataset(
        np.append(paths[:3], os.fsencode(broken)), np.zeros(4), 16, 3, 18, True, max_unreadable=1
    )
    dataset.crops = ViewCrops(SimCLRViews(16), (3, 16, 16), 18)
    batch = dataset.__getitems__([3, 1])
    assert batch["label"].tolist() == [-1, 0] and dataset.unreadable.tolist() == [False] * 3 + [True]
    assert batch["crops"][0].shape == (2, 2, 3, 16, 16)
