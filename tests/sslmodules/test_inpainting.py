"""The error counts hidden pixels only, its scale does not follow the hole, and the network cannot see what it
must predict.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sslmodules.inpainting import Inpainting, masked_mse
from sslmodules.networks import ConvDecoder, ConvEncoder


def example(hidden: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 2, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(3, 36, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(36, generator=generator)[:hidden]] = True
    return prediction, target, mask.view(3, 1, 6, 6)


def slow_masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    images = []
    for b in range(len(target)):
        errors = []
        for c in range(target.shape[1]):
            for y in range(target.shape[2]):
                for x in range(target.shape[3]):
                    if mask[b, 0, y, x]:
                        errors.append((prediction[b, c, y, x] - target[b, c, y, x]) ** 2)
        images.append(torch.stack(errors).mean())
    return torch.stack(images).mean()


def test_equals_the_slow_reference() -> None:
    example_ = example()
    torch.testing.assert_close(masked_mse(*example_), slow_masked_mse(*example_), rtol=1e-12, atol=0)


def test_closed_form_and_independence_of_the_holes_size() -> None:
    """An error of 2 everywhere is 4, however large the hole: the mean is over hidden pixels, not over the
    image.
    """
    x = torch.zeros(1, 1, 4, 4)
    for hidden in (1, 5, 16):
        mask = torch.arange(16).view(1, 1, 4, 4) < hidden
        assert masked_mse(x + 2, x, mask).item() == 4


def test_halves_of_a_batch_average_to_the_whole_though_their_holes_differ() -> None:
    """Two ranks: the mean over all hidden pixels would weigh the rank with the larger holes less than one
    process does.
    """
    prediction, target, _ = example()
    mask = torch.zeros(3, 1, 6, 6, dtype=torch.bool)
    for b in range(3):
        mask[b, :, : 2 * b + 1] = True
    parts = [masked_mse(prediction[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(sum(parts) / 3, masked_mse(prediction, target, mask))


def test_visible_pixels_give_no_gradient() -> None:
    prediction, target, mask = example()
    prediction.requires_grad_()
    masked_mse(prediction, target, mask).backward()
    assert prediction.grad is not None
    assert (
        not prediction.grad[~mask.expand_as(target)].any() and prediction.grad[mask.expand_as(target)].all()
    )


def test_nothing_hidden_is_zero_not_nan() -> None:
    prediction, target, mask = example()
    assert masked_mse(prediction, target, torch.zeros_like(mask)).item() == 0


def module(**options: str) -> Inpainting:
    torch.manual_seed(0)
    return Inpainting(
        ConvEncoder(2, (8, 16)),
        ConvDecoder(16, 4, 8, (8,), 1),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        **options,
    )


def batch() -> dict[str, Tensor]:
    mask = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 2:6, 3:7] = True
    return {"input": torch.randn(4, 1, 8, 8), "mask": mask}


def test_prediction_does_not_depend_on_hidden_pixels() -> None:
    """The classic leak: the hole is not emptied, and the network learns to copy."""
    net, example_ = module().eval(), batch()
    other = {**example_, "input": torch.where(example_["mask"], torch.randn(4, 1, 8, 8), example_["input"])}
    assert torch.equal(net.reconstruct(example_), net.reconstruct(other))


def test_the_network_is_told_where_the_hole_is() -> None:
    """A hole over pixels that are 0 anyway changes the input of the network only through the mask's
    channel.
    """
    net = module().eval()
    x = torch.zeros(1, 1, 8, 8)
    hole = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    hole[..., 2:5, 2:5] = True
    assert not torch.equal(
        net.reconstruct({"input": x, "mask": hole}), net.reconstruct({"input": x, "mask": ~hole})
    )


def test_the_minimized_region_is_the_one_asked_for() -> None:
    example_ = batch()
    for region, key in (("hidden", "mse_hidden"), ("image", "mse_image")):
        terms = module(loss_region=region).losses(example_)
        assert torch.equal(terms["loss"], terms[key]) and not torch.equal(
            terms["mse_hidden"], terms["mse_image"]
        )


def test_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="loss_region must be one of hidden, image, got 'hole'"):
        module(loss_region="hole")
    vector_only = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"feature map.* got Identity"):
        Inpainting(vector_only, ConvDecoder(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def test_decoder_says_which_map_it_needs() -> None:
    with pytest.raises(ValueError, match=r"map_size is 7.*\(2, 2\)"):
        ConvDecoder(8, 7, 28)(torch.zeros(1, 8, 2, 2))
