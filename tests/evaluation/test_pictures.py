"""Pictures made of pictures: what is drawn where."""

from __future__ import annotations

from itertools import pairwise

import torch

from evaluation.pictures import LINE, matrix_of_counts, rows_of_images, scatter


def test_images_are_where_their_row_and_column_say() -> None:
    columns = [torch.full((2, 3, 32, 32), 0.2), torch.full((2, 3, 32, 32), 0.6)]
    columns[1][1] = 1.0
    plain = rows_of_images(columns)
    assert plain.shape == (3, 2 * 66 + 2, 2 * 66 + 2)
    titled = rows_of_images(columns, ["input", "view 1"], ["zero", "one"])
    left = titled.shape[2] - plain.shape[2]
    assert titled.shape[1] == plain.shape[1] + LINE and left > 20
    assert (titled[:, LINE:, left:] - plain).abs().max() < 1 / 255
    for row, column, value in ((0, 0, 0.2), (1, 0, 0.2), (0, 1, 0.6), (1, 1, 1.0)):
        inside = plain[:, 2 + row * 66 : 66 + row * 66, 2 + column * 66 : 66 + column * 66]
        assert inside.shape == (3, 64, 64) and (inside == value).all()
    # black on white: a title above each column, a name left of each row
    above, beside = titled[0, :LINE], titled[0, LINE:, :left]
    assert all(part.min() < 0.3 for part in above[:, left:].split(66, dim=1)[:2])
    assert all(part.min() < 0.3 for part in beside.split(66)[:2]) and above[:, :left].min() == 1


def test_long_titles_are_broken_at_spaces() -> None:
    images = [torch.zeros(1, 1, 64, 64)]
    short, long = (rows_of_images(images, [title]) for title in ("one", "several words that are many"))
    assert (long.shape[1] - short.shape[1]) % LINE == 0 and long.shape[1] > short.shape[1]


def test_the_confusion_matrix_is_darker_for_larger_shares() -> None:
    counts = torch.tensor([[9, 1], [4, 6]])
    image = matrix_of_counts(counts, ["a", "b"])
    cell, left = 34, image.shape[2] - 2 * 34 - 2
    corners = [
        image[0, 2 * LINE + i * cell + 1, left + j * cell + 1] for i, j in ((0, 0), (1, 1), (1, 0), (0, 1))
    ]
    assert all(dark < light for dark, light in pairwise(corners))
    many = matrix_of_counts(torch.eye(200).long(), [str(i) for i in range(200)])
    assert many.shape[1] < 900 and many.shape[2] < 900


def test_the_scatter_shows_the_directions_of_largest_variance() -> None:
    """Two classes apart along (1, 1, 0), each spread along (0, 0, 1): the first axis tells them apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    features = torch.zeros(40, 3)
    features[:, :2] = 10.0 * labels[:, None]
    features[:, 2] = torch.randn(40, generator=generator)
    image = scatter(features, labels, ["a", "b"])
    assert image.shape == (3, 480 + 2 * LINE, 480 + 200)
    area = (image[:, :480, :480] * 255).round().long()
    found = {}
    for name, color in (("a", (0x1F, 0x77, 0xB4)), ("b", (0xD6, 0x27, 0x28))):
        inside = (area == torch.tensor(color)[:, None, None]).all(0).nonzero()
        assert len(inside) > 100
        found[name] = inside[:, 1].float()
    assert (found["a"].max() < 30 and found["b"].min() > 450) or (
        found["b"].max() < 30 and found["a"].min() > 450
    )


def test_the_legend_has_the_mark_of_each_class_and_tells_if_more_do_not_fit() -> None:
    image = scatter(torch.ones(2, 2), torch.tensor([-1, -1]), [str(i) for i in range(12)])
    marks = (image[:, :336, 480:508].unflatten(1, (12, 28)) * 255).round().long()
    inside = [tuple(mark[14, 20].tolist()) for mark in marks.permute(1, 2, 3, 0)]
    assert len(set(inside[:10])) == 10 and inside[10:] == [(255, 255, 255)] * 2
    many, most = (scatter(torch.ones(2, 2), torch.tensor([-1, 0]), ["a"] * n) for n in (18, 17))
    assert not torch.equal(many[:, 448:476, 500:], most[:, 448:476, 500:])


def test_unknown_labels_and_one_direction_can_be_drawn() -> None:
    image = scatter(torch.ones(4, 2), torch.tensor([-1, -1, 0, 9]), [str(i) for i in range(10)])
    assert image.isfinite().all()
