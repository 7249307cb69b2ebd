"""SimDINOv2's patch term against a slow reference, its loss and a test for each known mistake."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from timm.layers import DropPath
from torch import Tensor
from torch.nn import functional as F

from datamodules import Digits, MaskedMultiCrop, View
from runtime.messages import ROOT
from sslmodules.base import Gathered
from sslmodules.ibot import student_outputs, teacher_outputs
from sslmodules.networks import ConvEncoder
from sslmodules.simdino import cross_view_similarity, expansion
from sslmodules.simdinov2 import SimDINOv2, hidden_similarity
from tests.conftest import trainer_for
from tests.sslmodules.references import assert_same
from tests.sslmodules.test_ibot import HIDDEN, Watch, example, random, sgd, vit


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(random(*shape, seed=seed), dim=-1)


def test_similarity_of_hidden_patches_equals_the_slow_reference() -> None:
    """View by view: their mean, not that of all hidden patches of the batch; 0 where nothing is hidden."""

    def slow(student: Tensor, teacher: Tensor) -> Tensor:
        views = []
        for g in range(3):
            terms = [student[g, n] @ teacher.detach()[g, n] for n in range(4) if HIDDEN[g, n]]
            views.append(torch.stack(terms).mean() if terms else 0 * student.sum())
        return torch.stack(views).mean()

    assert HIDDEN.sum(1).tolist() == [2, 0, 4]
    assert_same(lambda s, t: hidden_similarity(s, t, HIDDEN), slow, unit(3, 4, 5), unit(3, 4, 5, seed=1))


def test_closed_forms() -> None:
    z = unit(3, 4, 5)
    assert hidden_similarity(z, z, HIDDEN).item() == pytest.approx(2 / 3)
    assert hidden_similarity(z, -z, HIDDEN).item() == pytest.approx(-2 / 3)
    assert hidden_similarity(z, z, torch.zeros(3, 4).bool()).item() == 0


# ---- the method --------------------------------------------------------------------------------------------


def module(encoder: Any = None, **options: Any) -> SimDINOv2:
    sizes = {"projector_hidden": 12, "projector_out": 6}
    return SimDINOv2(encoder or vit(), optimizer=sgd, **{**sizes, **options})


def test_the_loss_is_simdinos_and_that_of_hidden_patches() -> None:
    """The student sees masked global views, the teacher whole ones with ITS weights; one head for both kinds
    of tokens; the coding rate is of class tokens only.
    """
    net, batch = module(rate_weight=2.0, patch_weight=0.5).eval(), example()
    with torch.no_grad():
        for p in net.teacher.parameters():
            p.mul_(1.1).add_(0.01)
        net.mask_token.normal_()
    teacher_encoder, teacher_head = net.teacher.net  # type: ignore[misc]
    classes, targets, patches = [], [], []
    for v in range(2):
        hidden = batch["mask"][:, v]
        seen = net.projector(net.encoder.forward_masked(batch["views"][v], hidden, net.mask_token))
        whole = teacher_head(teacher_encoder.forward_visible(batch["views"][v]))
        seen, whole = F.normalize(seen, dim=2), F.normalize(whole, dim=2)
        classes.append(seen[:, 0])
        targets.append(whole[:, 0])
        patches.append(hidden_similarity(seen[:, 1:], whole[:, 1:], hidden))
    classes.append(F.normalize(net.projector(net.encoder(batch["views"][2])), dim=1))
    z, t = torch.stack(classes), torch.stack(targets)
    expected = {
        "similarity": cross_view_similarity(z, t),
        "expansion": expansion((z[:2] + t) / 2, 0.05),
        "patch_similarity": sum(patches) / 2,
    }
    expected["loss"] = (
        -expected["similarity"] - 2 * expected["expansion"] - 0.5 * expected["patch_similarity"]
    )
    terms = net.losses(batch)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_hidden_pixels_reach_the_teacher_only() -> None:
    """Known mistake: a student that sees what it has to predict, or a teacher that does not."""
    net, batch = module(), example()
    first = batch["views"][0].requires_grad_()
    hidden = batch["mask"][:, 0].view(5, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    terms = net.losses(batch)
    terms["loss"].backward()
    assert first.grad is not None and not first.grad[hidden].any() and first.grad[~hidden].all()
    batch["views"][0] = torch.where(hidden, 9.0, first.detach())
    assert not torch.isclose(net.losses(batch)["patch_similarity"], terms["patch_similarity"])


def test_the_covariance_is_that_of_all_ranks() -> None:
    """Known failure: with a small batch on each process the own covariance has too low a rank."""
    net, gathered = module(), []

    def gather(z: Tensor) -> Gathered:
        gathered.append(torch.cat([z, z.roll(1, 2)]))  # as if there were a second rank
        return Gathered(gathered[-1], 0)

    net.gather = gather  # type: ignore[method-assign]
    terms = net.losses(example())
    assert [tuple(rows.shape) for rows in gathered] == [(10, 2, 6)]
    torch.testing.assert_close(terms["expansion"], expansion(gathered[0].transpose(0, 1), 0.05))


def test_the_teacher_gets_no_gradient_and_has_no_noise() -> None:
    """Known mistake: stochastic depth left on in the teacher, which is in training mode."""
    encoder: Any = vit()
    for block in encoder.blocks:
        block.drop_path1 = DropPath(0.5)
    net, batch = module(encoder), example()
    net.losses(batch)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in net.teacher.parameters())
    assert net.mask_token.grad is not None and net.mask_token.grad.any()
    x = batch["views"][0].repeat(4, 1, 1, 1)
    assert net.teacher.training
    assert torch.equal(teacher_outputs(net.teacher, x)[1], teacher_outputs(net.teacher, x)[1])
    assert not torch.equal(net.encoder(x), net.encoder(x))


def test_the_teacher_is_a_copy_that_follows_once_a_step(tmp_path: Path) -> None:
    """Known mistakes: ``=`` instead of a copy; an update in a hook of each batch, or before the step."""
    net, watch = module(momentum=0.5), Watch()
    student = {p.data_ptr() for p in net.student().parameters()}
    assert not student & {p.data_ptr() for p in net.teacher.parameters()}
    for mine, theirs in zip(net.teacher.parameters(), net.student().parameters(), strict=True):
        assert torch.equal(mine, theirs)
    data = Digits(views=MaskedMultiCrop(View(8), View(8), View(6), 0, patch_size=2), batch_size=16)
    options = {"limit_train_batches": 4, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    with pytest.warns(UserWarning, match="SimDINOv2 compares samples"):
        trainer_for(tmp_path, max_epochs=1, callbacks=[watch], **options).fit(net, data)
    for batch in (0, 2):
        (_, t0), (_, t1), (s2, t2) = watch.seen[batch : batch + 3]
        m = 1 - 0.5 * (math.cos(math.pi * batch / 4) + 1) / 2
        assert torch.equal(t0, t1) and not torch.equal(t1, t2)
        torch.testing.assert_close(t2, m * t0 + (1 - m) * s2)


def test_features_are_the_teachers() -> None:
    net, x = module().eval(), example()["views"][0]
    net.encoder.patch_embed.weight.data += 1  # type: ignore[union-attr, operator]
    assert torch.equal(net.embed(x), net.teacher.net[0](x))  # type: ignore[index]
    assert not torch.equal(net.embed(x), net.encoder(x))


def test_encoder_and_projector_are_clipped_each_as_a_whole() -> None:
    """Unlike DINO's code, which clips each parameter; the mask token is part of the official encoder."""
    net = module(clip_norm=0.5, final_weight_decay=None)
    encoder, projector = [*net.encoder.parameters(), net.mask_token], [*net.projector.parameters()]
    for p in encoder:
        p.grad = torch.ones_like(p)
    for p in projector:
        p.grad = torch.full_like(p, 1e-4)
    net.on_before_optimizer_step(sgd(net.parameters()))
    values = torch.cat([p.grad.flatten() for p in encoder if p.grad is not None])
    assert values.norm().item() == pytest.approx(0.5, rel=1e-5) and len(values.unique()) == 1
    assert all((p.grad == 1e-4).all() for p in projector)


def test_weight_decay_rises_and_learning_rates_fall_with_depth() -> None:
    net = module(layer_decay=0.5, final_weight_decay=0.4)
    groups = net.parameter_groups()
    scales = {p: group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == sum(p.requires_grad for p in net.parameters())
    encoder: Any = net.encoder
    assert scales[net.mask_token] == scales[encoder.class_token] == 0.5**3
    assert [scales[block.mlp.fc1.weight] for block in encoder.blocks] == [0.5**2, 0.5]
    assert scales[encoder.norm.weight] == scales[net.projector[0].weight] == 1.0
    assert all("lr_scale" not in group for group in module(layer_decay=1.0).parameter_groups())
    optimizer = sgd(groups)
    net.progress = lambda: 1.0  # type: ignore[method-assign]
    net.on_before_optimizer_step(optimizer)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.4, 0.0}


def test_embeddings_and_determinant_are_in_float32() -> None:
    """Known mistake: half precision, in which a cosine has two digits."""
    net, batch = module(), example()
    whole, hidden = torch.cat(batch["views"][:2]), batch["mask"].transpose(0, 1).flatten(0, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = net.losses(batch)
        outputs = student_outputs(
            net.encoder, net.projector, net.mask_token, whole, hidden, batch["views"][2:]
        )
        outputs += teacher_outputs(net.teacher, whole)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    assert {z.dtype for z in outputs} == {torch.bfloat16}
    classes, patches, targets, patch_targets = (F.normalize(z.float(), dim=2) for z in outputs)
    torch.testing.assert_close(terms["similarity"], cross_view_similarity(classes, targets))
    torch.testing.assert_close(terms["expansion"], expansion((classes[:2] + targets) / 2, 0.05))
    torch.testing.assert_close(terms["patch_similarity"], hidden_similarity(patches, patch_targets, hidden))


@pytest.mark.parametrize("data", ["digits", "cifar10", "imagenet"])
def test_embeddings_are_not_wider_than_the_batch(data: str) -> None:
    """Known failure: N embeddings have a covariance of rank N at most."""
    config = yaml.safe_load((ROOT / f"configs/{data}/simdinov2.yaml").read_text())
    options, batch = config["model"]["init_args"], config["data"]["init_args"]["batch_size"]
    gpus = 8 if data == "imagenet" else 1
    assert options.get("projector_out", 256) <= gpus * batch


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("epsilon", 0),
        ("rate_weight", -1),
        ("patch_weight", -1),
        ("momentum", 1.1),
        ("projector_hidden", 0),
        ("projector_layers", 0),
        ("projector_out", 0),
        ("layer_decay", 0),
        ("clip_norm", 0),
        ("final_weight_decay", -0.1),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        module(**{knob: value})


def test_networks_and_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder must be an image encoder that can encode some patches"):
        module(ConvEncoder(1))
    batch = example()
    module().check_batch(batch)
    with pytest.raises(ValueError) as caught:
        module().check_batch({**batch, "mask": batch["mask"][..., :4]})
    assert str(caught.value) == (
        "SimDINOv2 needs a mask for the 16 patches of 2x2 pixels of both global views, (5, 2, 16), got "
        "(5, 2, 4): set data.views to MaskedMultiCrop with the encoder's patch_size"
    )
