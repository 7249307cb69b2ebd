"""The losses by hand, who gets which gradient, and a loop by hand that counts, clips and resumes as
Lightning's does.
"""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from datamodules import Digits
from datamodules.errors import ConfigError
from runtime.callbacks import Throughput
from sslmodules.gan import GAN, discriminator_loss, diversity, generator_loss, gradient_penalty
from sslmodules.networks import ConvEncoder, DCGANDiscriminator, DCGANGenerator
from tests.conftest import trainer_for

LOSSES = ("non_saturating", "hinge", "wgan_gp")
RANGE = {"mean": (0.3064,), "std": (0.3767,)}  # of Digits


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- losses ------------------------------------------------------------------------------------------------


def slow_losses(real: Tensor, fake: Tensor, loss: str) -> tuple[float, float]:
    """Sample by sample, from probabilities where the paper has them."""
    d = g = 0.0
    n = len(real)
    for r, f in zip(real.tolist(), fake.tolist(), strict=True):
        p_real, p_fake = 1 / (1 + math.exp(-r)), 1 / (1 + math.exp(-f))
        if loss == "non_saturating":
            d += (-math.log(p_real) - math.log(1 - p_fake)) / n
            g += -math.log(p_fake) / n
        elif loss == "hinge":
            d += (max(0.0, 1 - r) + max(0.0, 1 + f)) / n
            g += -f / n
        else:
            d += (f - r) / n
            g += -f / n
    return d, g


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_equal_the_slow_reference(loss: Any) -> None:
    real, fake = 3 * randn(7), 3 * randn(7, seed=1)
    got = discriminator_loss(real, fake, loss).item(), generator_loss(fake, loss).item()
    assert got == pytest.approx(slow_losses(real, fake, loss), rel=1e-12)


def test_closed_forms_of_a_discriminator_that_cannot_tell() -> None:
    zero = torch.zeros(5)
    assert discriminator_loss(zero, zero).item() == pytest.approx(math.log(4))
    assert generator_loss(zero).item() == pytest.approx(math.log(2))
    assert (
        discriminator_loss(zero, zero, "hinge").item() == 2
        and discriminator_loss(zero, zero, "wgan_gp").item() == 0
    )


def test_the_generator_learns_where_the_discriminator_is_sure() -> None:
    """log(1 - D), the saturating form, has a gradient of e^-20 here."""
    logits = torch.full((4,), -20.0, requires_grad=True)
    generator_loss(logits).backward()
    assert logits.grad is not None and logits.grad.sum().item() == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_at_large_logits(loss: Any, dtype: torch.dtype) -> None:
    """A sigmoid would be exactly 0 or 1 here, and its logarithm infinite; a mean in float16 would
    overflow.
    """
    logits = torch.tensor([60000.0, -60000.0, 50000.0], dtype=dtype, requires_grad=True)
    total = discriminator_loss(logits, logits, loss) + generator_loss(logits, loss)
    total.backward()
    assert (
        total.dtype == torch.float32
        and total.isfinite()
        and logits.grad is not None
        and logits.grad.isfinite().all()
    )


def test_penalty_of_a_linear_critic() -> None:
    """Its gradient is w at every point: (|w| - 1)^2 = 16, whatever the samples."""
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert gradient_penalty(
        lambda x: x @ w, randn(6, 2), randn(6, 2, seed=1), torch.rand(6)
    ).item() == pytest.approx(16)


def test_penalty_is_taken_at_the_point_between_sample_by_sample() -> None:
    """Of |x|^2 / 2 the gradient is x itself, so the penalty tells where it was taken: one epsilon for each
    sample.
    """
    real, fake, epsilon = randn(5, 1, 3, 3), randn(5, 1, 3, 3, seed=1), torch.rand(5, dtype=torch.float64)
    expected = 0.0
    for i in range(5):
        point = epsilon[i] * real[i] + (1 - epsilon[i]) * fake[i]
        expected += (point.norm().item() - 1) ** 2 / 5
    got = gradient_penalty(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, epsilon)
    assert got.item() == pytest.approx(expected, rel=1e-10)


def test_penalty_and_its_gradient_equal_finite_differences() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    real, fake, epsilon = randn(4, 3), randn(4, 3, seed=1), torch.rand(4, dtype=torch.float64)

    def slow() -> float:
        total, h = 0.0, 1e-5
        with torch.no_grad():
            for i in range(4):
                point = epsilon[i] * real[i] + (1 - epsilon[i]) * fake[i]
                slope = [
                    (critic(point + h * e) - critic(point - h * e)).item() / (2 * h)
                    for e in torch.eye(3).double()
                ]
                total += (math.sqrt(sum(s * s for s in slope)) - 1) ** 2 / 4
        return total

    penalty = gradient_penalty(lambda x: critic(x).squeeze(1), real, fake, epsilon)
    assert penalty.item() == pytest.approx(slow(), rel=1e-7)
    penalty.backward()
    weight = critic[0].weight
    for row, column in ((0, 0), (5, 2)):
        assert weight.grad is not None
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                weight[row, column] += step
                values.append(slow())
                weight[row, column] -= step
        assert weight.grad[row, column].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


def test_penalty_of_a_flat_critic_has_a_finite_gradient() -> None:
    w = torch.zeros(2, requires_grad=True)
    penalty = gradient_penalty(lambda x: x @ w, torch.ones(3, 2), torch.zeros(3, 2), torch.rand(3))
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-5) and w.grad is not None and w.grad.isfinite().all()


def test_the_penalty_leaves_half_precision() -> None:
    """A gradient of 1e-5 has a square that float16 has not; under autocast the critic runs in float32 too."""
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, 1e-5)
    seen = []

    def critic(x: Tensor) -> Tensor:
        out = layer(x).squeeze(1)
        seen.append(out.dtype)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradient_penalty(critic, torch.ones(3, 2), torch.zeros(3, 2).bfloat16(), torch.rand(3))
    assert seen == [torch.float32]


def test_diversity_is_one_for_the_data_and_zero_when_collapsed() -> None:
    x = randn(16, 1, 4, 4)
    assert diversity(x, x).item() == 1 and diversity(x / 2 + 3, x).item() == pytest.approx(0.5)
    assert diversity(x[:1].expand_as(x), x).item() == pytest.approx(0, abs=1e-12)


# ---- who gets which gradient -------------------------------------------------------------------------------


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, betas=(0.5, 0.999))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def gan(norm: Any = "layer", **options: Any) -> GAN:
    """Tiny, and the same in each call. Without batch norm a sample does not depend on the others."""
    torch.manual_seed(0)
    generator = DCGANGenerator(4, 8, (8, 4), 1, **RANGE)
    if norm == "layer":
        generator.layers = nn.Sequential(*(m for m in generator.layers if not isinstance(m, nn.BatchNorm2d)))
    module = GAN(DCGANDiscriminator(1, 8, (4, 8), norm), generator, **{"optimizer": adam, **options})
    with torch.no_grad():
        for p in module.parameters():  # four layers of so few channels would give next to no gradient at 0.02
            p.mul_(5 if p.ndim > 1 else 1)
    return module


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


def images(n: int = 8) -> Tensor:
    return randn(n, 1, 8, 8).float().clamp(-0.8, 1.8)


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


def state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


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


# ---- samples, networks, knobs ------------------------------------------------------------------------------


def test_samples_come_from_the_same_noise_in_every_call_and_run() -> None:
    module = gan("batch").eval()
    before = state(module)
    few, many = module.sample(8), module.sample(70)
    assert many.shape == (70, 1, 8, 8) and torch.equal(few, module.sample(8))
    torch.testing.assert_close(
        many[:8], module.sample(64)[:8]
    )  # a convolution may sum a larger batch in another order
    assert not torch.equal(many[64:], module.sample(70)[64:])  # beyond the fixed ones it draws
    torch.testing.assert_close(module.sample(3, module.fixed_z[3:6]), module.sample(6)[3:])
    assert torch.equal(module.fixed_z, gan().fixed_z) and not many.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in state(module).items())


@pytest.mark.parametrize(
    ("size", "channels", "smallest"), [(8, (16, 8), 2), (28, (16, 8), 7), (32, (16, 8, 4), 4)]
)
def test_networks_of_each_size(size: int, channels: tuple[int, ...], smallest: int) -> None:
    generator, encoder = DCGANGenerator(5, size, channels, 2), DCGANDiscriminator(2, size, channels[::-1])
    x = generator(torch.randn(3, 5))
    assert x.shape == (3, 2, size, size) and x.abs().max() <= 1
    assert generator.map_shape[1] == smallest == encoder.forward_features(x).shape[-1]
    assert encoder(x).shape == (3, encoder.num_features) == (3, 16 * smallest**2)


def test_networks_start_as_the_paper_says() -> None:
    generator, encoder = DCGANGenerator(), DCGANDiscriminator()
    for net in (generator, encoder):
        for name, p in net.named_parameters():
            if p.ndim > 1:
                assert p.mean().item() == pytest.approx(0, abs=2e-3) and p.std().item() == pytest.approx(
                    0.02, rel=0.05
                ), name
        assert all(torch.all(m.bias == 0) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    # no norm at the generator's output nor at the discriminator's input, where they would hide what the data
    # look like
    assert [type(m) for m in generator.layers][-2:] == [nn.ConvTranspose2d, nn.Tanh]
    assert [type(m) for m in encoder.layers][:3] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d]


def test_the_generator_reaches_black_and_white_and_nothing_beyond() -> None:
    generator, data = DCGANGenerator(4, 8, (8, 4), 1, **RANGE), Digits()
    last = generator.layers[-2]
    for bias, pixel in ((-50.0, 0.0), (50.0, 1.0)):
        nn.init.constant_(last.bias, bias)
        expected = data.standardize(torch.full((1, 1, 8, 8), pixel))
        torch.testing.assert_close(generator(torch.randn(1, 4)), expected)


def test_data_that_the_generator_cannot_make_is_refused() -> None:
    with pytest.raises(ValueError, match=r"makes samples of shape \(1, 8, 8\), the data's are \(1, 28, 28\)"):
        gan().check_batch({"input": torch.zeros(2, 1, 28, 28)})
    with pytest.raises(ValueError, match=r"values lie in -0.81 to 1.84, the data's in -2.10 to 3.00"):
        gan().check_batch({"input": torch.linspace(-2.1, 3.0, 128).view(2, 1, 8, 8)})
    module = gan("batch")
    before = state(module)
    module.check_batch({"input": images()})
    assert all(torch.equal(v, before[k]) for k, v in state(module).items())


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("loss", "wgan"),
        ("penalty_weight", -1.0),
        ("discriminator_steps", 0),
        ("accumulate", 0),
        ("clip_norm", 0.0),
        ("warmup_epochs", -1),
    ],
)
def test_a_bad_knob_is_named_with_its_value(knob: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{knob}.*{value}"):
        gan(**{knob: value})


def test_networks_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss wgan_gp .* batch norm .* norm: layer"):
        gan("batch", loss="wgan_gp")
    with pytest.raises(
        ConfigError,
        match=r"^generator must be a network from noise to a sample \(Generator: DCGANGenerator\), got "
        r"Identity$",
    ):
        GAN(ConvEncoder(1), nn.Identity(), optimizer=sgd)
    for function in (
        lambda: discriminator_loss(torch.zeros(1), torch.zeros(1), "ls"),
        lambda: generator_loss(torch.zeros(1), "ls"),
    ):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="loss must be one of non_saturating, hinge, wgan_gp, got 'ls'"):
            function()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DCGANGenerator(0), "latent_dim must be at least 1, got 0"),
        (lambda: DCGANGenerator(image_size=28), "image_size must be a multiple of 8.*got 28"),
        (lambda: DCGANGenerator(channels=()), "channels must be at least one width of 1 or more, got"),
        (
            lambda: DCGANGenerator(channels=(8, 0)),
            r"channels must be at least one width of 1 or more, got \(8, 0\)",
        ),
        (
            lambda: DCGANGenerator(mean=(0.1, 0.2)),
            r"mean must be one value or one for each of 3 channels, got \(0.1, 0.2\)",
        ),
        (lambda: DCGANGenerator(std=(0.0,)), r"std must be positive, got \(0.0,\)"),
        (lambda: DCGANDiscriminator(image_size=4), "image_size must be at least 8 for 3 channels, got 4"),
        (lambda: DCGANDiscriminator(norm="spectral"), "norm must be one of batch, layer, got 'spectral'"),  # type: ignore[arg-type]
        (
            lambda: DCGANDiscriminator(1)(torch.zeros(1, 1, 28, 28)),
            r"image_size is 32, but the images are \(28, 28\)",
        ),
    ],
)
def test_bad_knobs_of_the_networks(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
