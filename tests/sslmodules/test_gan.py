"""Which gradient each network gets, and a loop by hand that counts, clips and resumes as Lightning's does."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from datamodules import Digits
from runtime.callbacks import Throughput
from sslmodules.gan import GAN, discriminator_loss, generator_loss, gradient_penalty
from tests.conftest import trainer_for
from tests.sslmodules.gans import LOSSES, adam, gan, images, randn, sgd, state

# ---- who gets which gradient -------------------------------------------------------------------------------


class Noise:
    """Stands in for a method's ``randn`` and ``rand``: rows of one stream each, so that parts of a batch get
    what it would.
    """

    def __init__(self, module: GAN, rows: int = 400) -> None:
        self.normal, self.uniform = (
            randn(rows, 4).float(),
            torch.rand(rows, generator=torch.Generator().manual_seed(1)),
        )
        self.at = {"randn": 0, "rand": 0}
        module.randn, module.rand = self.randn, self.rand  # type: ignore[method-assign]

    def take(self, name: str, stream: Tensor, n: int) -> Tensor:
        self.at[name] += n
        assert self.at[name] <= len(stream)
        return stream[self.at[name] - n : self.at[name]].to(torch.get_default_dtype(), copy=True)

    def randn(self, *size: int) -> Tensor:
        return self.take("randn", self.normal, size[0])

    def rand(self, *size: int) -> Tensor:
        return self.take("rand", self.uniform, size[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_one_backward_gives_each_network_its_own_gradient(loss: Any) -> None:
    module, x = gan(loss=loss), images()
    noise = Noise(module)
    module.losses({"input": x})["loss"].backward()
    got = {name: p.grad for name, p in module.named_parameters()}
    z1, z2, epsilon = noise.normal[:8], noise.normal[8:16], noise.uniform[:8]

    def logits(images: Tensor) -> Tensor:
        return module.head(module.encoder(images)).squeeze(1)

    fake = module.generator(z1).detach()
    d_loss = discriminator_loss(logits(x), logits(fake), loss)
    if loss == "wgan_gp":
        d_loss = d_loss + 10 * gradient_penalty(logits, x, fake, epsilon)
    for part, expected in (("generator.", generator_loss(logits(module.generator(z2)), loss)), ("", d_loss)):
        own = {
            n: p for n, p in module.named_parameters() if n.startswith("generator.") == (part == "generator.")
        }
        for name, gradient in zip(own, torch.autograd.grad(expected, list(own.values())), strict=True):
            torch.testing.assert_close(got[name], gradient, msg=lambda m, name=name: f"{name}: {m}")


def test_running_statistics_of_the_discriminator_are_of_real_images_only() -> None:
    module, x = gan("batch"), images()
    alone = copy.deepcopy(module.encoder)
    alone(x)
    module.losses({"input": x})
    for (name, got), expected in zip(module.encoder.named_buffers(), alone.buffers(), strict=True):
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("loss", LOSSES)
def test_each_player_learns_against_one_that_stands_still(loss: Any) -> None:
    for player in (0, 1):
        module, x = gan("layer", loss=loss), images(16)
        optimizer = torch.optim.Adam(module._players()[player].parameters(), lr=3e-3)
        history = []
        for _ in range(15):
            terms = module.generator_terms(x) if player else module.discriminator_terms(x)
            optimizer.zero_grad()
            next(iter(terms.values())).backward()
            optimizer.step()
            history.append(next(iter(terms.values())).item())
        assert history[-1] < history[0] - 0.01


# ---- the loop ----------------------------------------------------------------------------------------------


class Watch(Callback):
    """What reaches the optimizers, and the counts at the end of each batch."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.inputs: list[Tensor] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.inputs.append(batch["input"])

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.counts.append(trainer.global_step)
        self.losses.append(outputs["loss"].item())


def fit(module: GAN, folder: Path, checkpoint: Path | None = None, **options: Any) -> tuple[Watch, Any]:
    watch = Watch()
    plain = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 0, "callbacks": []}
    options = {**plain, **options}
    trainer = trainer_for(folder, **{**options, "callbacks": [watch, *options["callbacks"]]})
    trainer.fit(module, Digits(batch_size=8), ckpt_path=checkpoint)
    return watch, trainer


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], **tolerance: float) -> None:
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], msg=lambda m, key=key: f"{key}: {m}", **tolerance)


@pytest.mark.parametrize(
    ("loss", "every", "norm"),
    [("non_saturating", 1, "batch"), ("hinge", 2, "layer"), ("wgan_gp", 2, "layer")],
)
def test_the_loop_equals_one_written_by_hand(loss: Any, every: int, norm: str, tmp_path: Path) -> None:
    """Discriminator first; the generator against the new one; nobody's gradient left over from the other's
    step.
    """
    module = gan(norm, loss=loss, discriminator_steps=every, final_lr_factor=1.0)
    slow = copy.deepcopy(module)
    Noise(module)
    noise = Noise(slow)
    watch, _ = fit(module, tmp_path)

    d_parameters = [*slow.encoder.parameters(), *slow.head.parameters()]
    d_optimizer, g_optimizer = adam(d_parameters), adam(slow.generator.parameters())

    def logits(images: Tensor, keep: bool = True) -> Tensor:
        before = copy.deepcopy(dict(slow.encoder.named_buffers()))
        out = slow.head(slow.encoder(images)).squeeze(1)
        for name, buffer in slow.encoder.named_buffers():
            if not keep:
                buffer.data = before[name]
        return out

    for i, x in enumerate(watch.inputs):
        fake = slow.generator(noise.randn(8, 4)).detach()
        d_loss = discriminator_loss(logits(x), logits(fake, keep=False), loss)
        if loss == "wgan_gp":
            d_loss = d_loss + 10 * gradient_penalty(logits, x, fake, noise.rand(8))
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()
        if (i + 1) % every == 0:
            g_loss = generator_loss(logits(slow.generator(noise.randn(8, 4)), keep=False), loss)
            g_optimizer.zero_grad()
            g_loss.backward()
            g_optimizer.step()
    assert_close(state(module), state(slow), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
def test_a_batch_is_one_step_however_many_optimizers_step_in_it(every: int, tmp_path: Path) -> None:
    """Lightning counts each optimizer's steps: epochs, max_steps, schedules and logs would all be short by
    half.
    """

    class Count(Callback):
        def __init__(self) -> None:
            self.of: list[Any] = []

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.of.append(trainer.optimizers.index(optimizer))

    count = Count()
    watch, trainer = fit(gan(discriminator_steps=every), tmp_path, max_epochs=2, callbacks=[count])
    assert watch.counts == [1, 2, 3, 4, 5, 6, 7, 8] and trainer.current_epoch == 2
    assert count.of == ([0, 1] * 8 if every == 1 else [0, 0, 1] * 4)
    # the cosine has come to its end for both, which it does after the last step
    assert [g["lr"] for o in trainer.optimizers for g in o.param_groups] == pytest.approx([0] * 4, abs=1e-12)
    watch, trainer = fit(gan(discriminator_steps=every), tmp_path, max_epochs=9, max_steps=6)
    assert len(watch.inputs) == 6 == trainer.global_step
    assert trainer.optimizers[1].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_logs_and_throughput_come_every_n_batches(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    options = {
        "limit_train_batches": 12,
        "log_every_n_steps": 4,
        "logger": logger,
        "callbacks": [Throughput()],
    }
    fit(gan(), tmp_path, **options)
    logger.save()
    with open(logger.experiment.metrics_file_path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [3, 7, 11]
    assert [int(row["step"]) for row in rows if row["time/samples_per_s"]] == [3, 7, 11]
    wanted = {"loss", "discriminator", "generator", "real_score", "fake_score", "diversity"}
    assert {k[6:] for k in rows[0] if k.startswith("train/")} == wanted | {"lr"}


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_a_batch_add_up_to_the_whole(loss: Any, tmp_path: Path) -> None:
    """Also where they are not equal: 3, 3 and 2 of 8. SGD, because Adam makes full steps of rounding."""
    whole, parts = (gan(loss=loss, accumulate=n, optimizer=sgd) for n in (1, 3))
    states, losses = [], []
    for module in (whole, parts):
        Noise(module)
        watch, _ = fit(module, tmp_path, precision="64-true", limit_train_batches=3)
        states.append(state(module))
        losses.append(watch.losses)
    assert_close(states[0], states[1], rtol=1e-8, atol=1e-10)
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


class Norms(GAN):
    """Notes each network's gradient as its optimizer gets it."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())


def noting(module: GAN) -> GAN:
    module.__class__, module.norms = Norms, []
    return module


def test_each_network_is_clipped_by_itself(tmp_path: Path) -> None:
    free, clipped = noting(gan()), noting(gan(clip_norm=0.01))
    for module in (free, clipped):
        fit(module, tmp_path, max_steps=2)
    assert min(free.norms) > 0.02
    assert clipped.norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_mixed_precision_with_one_scaler_for_two_optimizers(tmp_path: Path) -> None:
    """Clipped after the scale is taken off, each network's gradient under the scale that it was made with."""
    modules = []
    for scaled in (False, True):
        module = noting(gan(clip_norm=0.05, optimizer=sgd))
        Noise(module)
        # the scale doubles after every single step, also between the two of a batch
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=1)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if scaled else []
        fit(module, tmp_path, plugins=plugins)
        assert not scaled or scaler.get_scale() == 2.0 ** (6 + 8)
        modules.append(module)
    assert modules[1].norms == pytest.approx(modules[0].norms, rel=2e-2)
    assert_close(state(modules[0]), state(modules[1]), rtol=2e-2, atol=2e-3)


def test_resume_between_two_steps_of_the_generator(tmp_path: Path) -> None:
    """Every second batch only, so that the place within the pair has to survive; weights, moments and rates
    bit for bit.
    """

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    runs = []
    for checkpoint in (None, tmp_path / "stopped.ckpt"):
        module = gan("batch", discriminator_steps=2, accumulate=2, clip_norm=0.5)
        watch, trainer = fit(
            module, tmp_path, checkpoint, max_epochs=2, callbacks=[Stop()] if checkpoint is None else []
        )
        runs.append((state(module), trainer, watch.losses))
    (first, one, losses), (second, two, rest) = runs
    assert losses[3:] == rest and two.global_step == 8
    assert all(torch.equal(first[k], second[k]) for k in first)
    for a, b in zip(one.optimizers, two.optimizers, strict=True):
        assert [g["lr"] for g in a.param_groups] == [g["lr"] for g in b.param_groups]
        for x, y in zip(a.state.values(), b.state.values(), strict=True):
            assert all(torch.equal(x[k], y[k]) for k in x)


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [("gradient_clip_val", 0.5, "clip_norm 0.5"), ("accumulate_grad_batches", 4, "accumulate 4")],
)
def test_what_the_trainer_cannot_do_says_what_can(
    option: str, value: float, instead: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.{option} {value}: .*use --model\.{instead}"):
        fit(gan(), tmp_path, **{option: value})


@pytest.mark.parametrize("loss", LOSSES)
def test_validation_needs_no_gradient(loss: Any) -> None:
    module = gan(loss=loss).eval()
    before = state(module)
    with torch.inference_mode():
        terms = module.losses({"input": images()})
    assert all(v.isfinite() for v in terms.values()) and "penalty" not in terms
    assert all(torch.equal(v, before[k]) for k, v in state(module).items())
