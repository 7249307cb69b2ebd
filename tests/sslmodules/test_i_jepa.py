"""I-JEPA's targets and prediction, what each network sees, and a test for each known mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslmodules.i_jepa import IJEPA, normalized_targets
from sslmodules.networks import ConvEncoder, ViTEncoder
from tests.sslmodules.references import assert_gradients_close, gradients


def small(**options: Any) -> IJEPA:
    torch.manual_seed(0)
    sizes = {"predictor_width": 8, "predictor_depth": 1, "predictor_heads": 2}
    encoder = ViTEncoder(8, 2, 1, width=8, depth=2, heads=2)
    return IJEPA(encoder, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **{**sizes, **options})


def example(n: int = 3) -> dict[str, Any]:
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    context = torch.tensor([[0, 1, 4, 5]]).expand(n, -1)
    targets = torch.tensor([[[10, 11, 14], [2, 3, 6]]]).expand(n, -1, -1)
    return {"input": x, "views": [x], "context": context, "targets": targets}


def test_targets_equal_the_slow_reference() -> None:
    """Each token by itself has mean 0 and variance 1 over its features."""
    tokens = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    patches = torch.tensor([[[0, 3]], [[4, 1]]])
    got = normalized_targets(tokens, patches)
    for b in range(2):
        for place, patch in enumerate(patches[b, 0].tolist()):
            token = tokens[b, patch]
            expected = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(got[b, 0, place], expected)


def test_the_loss_equals_the_slow_reference() -> None:
    """Values and gradients: smooth L1, number by number, of each image and block by itself."""
    module, batch = small().double().train(), example()
    x, context, targets = batch["views"][0].double(), batch["context"], batch["targets"]
    encoder: Any = module.teacher.net
    terms = []
    for b in range(3):
        tokens = F.layer_norm(encoder.forward_visible(x[b : b + 1])[0, 1:], (8,)).detach()
        seen = module.encoder.forward_visible(x[b : b + 1], context[b : b + 1])[:, 1:]
        for block in targets[b]:
            prediction = module.predictor(seen, context[b : b + 1], block[None, None])[0, 0]
            errors = (prediction - tokens[block]).flatten().abs()
            terms += [error**2 / 2 if error < 1 else error - 0.5 for error in errors]
    found, expected = module.losses({**batch, "views": [x]})["loss"], sum(terms) / len(terms)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    learned = [*module.encoder.parameters(), *module.predictor.parameters()]
    fast, slow = (gradients([loss], learned) for loss in (found, expected))
    assert_gradients_close(fast, slow)


def test_the_target_encoder_sees_the_whole_image_the_context_encoder_its_patches() -> None:
    """Known mistakes: targets of a masked image; a context with the targets' pixels."""
    module, batch = small(), example()
    x = batch["views"][0]
    changed = x.clone()
    changed[:, :, 4:] = 7  # patches 8 to 15
    seen, other = (module.encoder.forward_visible(v, batch["context"]) for v in (x, changed))
    assert torch.equal(seen, other)
    encoder: Any = module.teacher.net
    top = torch.tensor([[[2, 3, 6]]]).expand(3, -1, -1)  # not changed themselves
    first, second = (normalized_targets(encoder.forward_visible(v)[:, 1:], top) for v in (x, changed))
    assert not torch.allclose(first, second)


def test_predictions_depend_on_the_position_that_is_asked_for() -> None:
    module, batch = small().eval(), example()
    seen = module.encoder.forward_visible(batch["views"][0], batch["context"])[:, 1:]
    prediction = module.predictor(seen, batch["context"], batch["targets"])
    assert prediction.shape == (3, 2, 3, 8)
    assert len(prediction[0].flatten(0, 1).unique(dim=0)) == 6
    swapped = module.predictor(seen, batch["context"], batch["targets"].flip(1))
    torch.testing.assert_close(swapped, prediction.flip(1))


def test_probes_see_the_mean_patch_of_the_target_encoder() -> None:
    """Known mistake: probing the context encoder, or the class token, which nothing is asked of."""
    module, x = small().eval(), example()["input"]
    with torch.no_grad():
        for p in module.teacher.parameters():
            p.mul_(1.5)
    encoder: Any = module.teacher.net
    torch.testing.assert_close(module.embed(x), encoder.forward_visible(x)[:, 1:].mean(1))
    assert not torch.allclose(module.embed(x), module.encoder.forward_visible(x)[:, 1:].mean(1))
    assert not torch.allclose(module.embed(x), encoder(x))
    assert module.feature_encoder is encoder


def test_the_target_encoder_gets_no_gradient_and_follows_linearly() -> None:
    module = small(momentum=0.5).train()
    module.losses(example())["loss"].backward()  # type: ignore[arg-type]
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())
    module.progress = lambda: 0.5  # type: ignore[method-assign]
    before = [p.clone() for p in module.teacher.parameters()]
    with torch.no_grad():
        for p in module.encoder.parameters():
            p.add_(1)
    module.update_teacher()
    for old, new in zip(before, module.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_targets_are_normalized_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        targets: Tensor = normalized_targets(torch.randn(2, 5, 6).bfloat16(), torch.zeros(2, 1, 1).long())
        loss = small().losses(example())["loss"]  # type: ignore[arg-type]
    assert targets.dtype == loss.dtype == torch.float32


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder must be an image encoder that can encode some patches"):
        IJEPA(ConvEncoder(1), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 2"):
        small(momentum=2)
    with pytest.raises(ValueError, match="predictor_depth must be at least 1, got 0"):
        small(predictor_depth=0)
    batch = example()
    with pytest.raises(ValueError, match="encoder has 16 patches, but views of 16x16 pixels have 64"):
        small().check_batch({**batch, "views": [torch.zeros(3, 1, 16, 16)]})  # type: ignore[typeddict-item]
