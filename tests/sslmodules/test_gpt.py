"""GPT: causal networks, next-token loss, sampling, and images as tokens."""

from __future__ import annotations

import copy
import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.base import SSLDataModule
from datamodules.errors import ConfigError
from evaluation.measures.language import Language, held_out_terms
from runtime.fit import check_fit
from sslmodules import GPT
from sslmodules.base import Gathered
from sslmodules.gpt import choose, next_token_nll
from sslmodules.networks import GPTEncoder, PixelTokens, RecurrentEncoder
from tests.conftest import trainer_for

V, BLOCK = 11, 12
NETWORKS = {
    "gpt": lambda: GPTEncoder(V, BLOCK, width=16, depth=2, heads=2),
    "gpt-no-bias": lambda: GPTEncoder(V, BLOCK, width=16, depth=2, heads=2, bias=False),
    "gru": lambda: RecurrentEncoder(V, width=16),
    "lstm": lambda: RecurrentEncoder(V, width=16, cell="lstm"),
}
adamw = partial(torch.optim.AdamW, lr=1e-2)


@pytest.fixture(params=NETWORKS)
def encoder(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return NETWORKS[request.param]().double().eval()


def method(encoder: nn.Module | None = None, **options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(encoder=encoder or NETWORKS["gpt"](), optimizer=adamw, **options)


def sharpened(module: GPT) -> GPT:
    """With weights large enough that the next token depends clearly on those before it."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return module.eval()


# ---- causality ---------------------------------------------------------------------------------------------


def test_a_state_changes_with_no_later_token_and_with_every_earlier_one(encoder: Any) -> None:
    tokens = torch.randint(0, V, (2, BLOCK))
    with torch.no_grad():
        before = encoder.states(tokens)
        for place in range(BLOCK):
            changed = tokens.clone()
            changed[:, place] = (changed[:, place] + 1) % V
            moved = (encoder.states(changed) - before).abs().amax((0, 2)) > 0  # (T,)
            assert moved.tolist() == [t >= place for t in range(BLOCK)]


def test_no_gradient_flows_from_a_prediction_to_later_tokens(encoder: Any) -> None:
    """And from every earlier one it does: the mask has the right diagonal."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, out: Tensor) -> None:
        out.retain_grad()
        seen.append(out)

    encoder.token_embedding.register_forward_hook(keep)
    tokens = torch.randint(0, V, (1, BLOCK))
    for t in range(BLOCK):
        seen.clear()
        encoder.states(tokens)[0, t].square().sum().backward()
        assert (seen[0].grad[0].abs().sum(1) > 0).tolist() == [s <= t for s in range(BLOCK)]


def test_row_and_batch_are_independent(encoder: Any) -> None:
    tokens = torch.randint(0, V, (5, BLOCK))
    with torch.no_grad():
        torch.testing.assert_close(encoder.states(tokens)[2:3], encoder.states(tokens[2:3]))


def test_resuming_token_by_token_equals_one_pass(encoder: Any) -> None:
    tokens = torch.randint(0, V, (3, BLOCK))
    with torch.no_grad():
        h, state = encoder.resume(tokens[:, :4])
        parts = [h]
        for t in range(4, BLOCK):
            h, state = encoder.resume(tokens[:, t : t + 1], state)
            parts.append(h)
        torch.testing.assert_close(torch.cat(parts, 1), encoder.states(tokens))


def test_attention_equals_the_formula() -> None:
    """Against softmax with a mask, head by head."""
    encoder = NETWORKS["gpt"]().double().eval()
    layer = encoder.blocks[0].attention
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    q, k, v = layer.qkv(x).split(16, dim=2)
    heads = []
    for i in range(2):
        one = slice(8 * i, 8 * i + 8)
        scores = q[..., one] @ k[..., one].transpose(1, 2) / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., one])
    torch.testing.assert_close(layer(x, None)[0], layer.out(torch.cat(heads, -1)))


# ---- initialization and weights ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        lambda: GPTEncoder(65, 64, 128, 4, 4),
        lambda: RecurrentEncoder(65, 128),
        lambda: RecurrentEncoder(65, 128, cell="lstm"),
    ],
)
def test_the_initial_loss_is_that_of_a_uniform_guess(network: Any) -> None:
    module = method(network())
    losses = module.losses({"input": torch.randint(0, 65, (32, 65))})
    assert abs(losses["loss"].item() - math.log(65)) < 0.06
    assert losses["bits_per_token"].item() == pytest.approx(losses["loss"].item() / math.log(2))
    assert module.derived(losses)["perplexity"].item() == pytest.approx(math.exp(losses["loss"].item()))


def test_residual_projections_start_smaller() -> None:
    encoder = GPTEncoder(65, 64, 256, depth=8, heads=4)
    stds = {name: p.std().item() for name, p in encoder.named_parameters() if p.ndim > 1}
    for name, std in stds.items():
        expected = 0.02 / 4 if name.endswith("out.weight") else 0.02  # sqrt(2 * 8) = 4
        assert std == pytest.approx(expected, rel=0.05), name
    assert sum(name.endswith("out.weight") for name in stds) == 16
    assert all((p == 0).all() for name, p in encoder.named_parameters() if name.endswith("bias"))


def test_the_output_layer_stays_tied() -> None:
    """After a copy and after loading, whichever way; it adds no parameter."""
    module = method()
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in module.encoder.parameters())
    other = method()
    other.load_state_dict(module.state_dict(), assign=True)
    for one in (module, copy.deepcopy(module), other):
        h = torch.randn(1, 2, 16)
        before = one.logits(h)
        with torch.no_grad():
            one.encoder.token_embedding.weight.mul_(2)
        torch.testing.assert_close(one.logits(h), 2 * before)


@pytest.mark.parametrize("bias", [True, False])
def test_the_export_is_gpt2(bias: bool, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    encoder = GPTEncoder(V, BLOCK, width=16, depth=2, heads=2, bias=bias).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    encoder.to_transformers().save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokens = torch.randint(0, V, (3, BLOCK))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).last_hidden_state, encoder.states(tokens), rtol=1e-4, atol=1e-5
        )


# ---- loss --------------------------------------------------------------------------------------------------


def test_the_loss_is_the_likelihood_token_by_token() -> None:
    module = sharpened(method()).double()
    tokens = torch.randint(0, V, (3, 7))
    total = 0.0
    for row in tokens:
        for t in range(1, 7):
            p = module.logits(module.encoder.states(row[None, :t]))[0, -1].softmax(0)[row[t]]
            total -= math.log(p.item())
    assert module.losses({"input": tokens})["loss"].item() == pytest.approx(total / 18)


def test_targets_are_the_next_tokens() -> None:
    """Logits that know the next token for certain have loss 0, those that repeat their input do not."""
    tokens = torch.tensor([[1, 2, 3, 4]])
    sure = 100.0 * F.one_hot(tokens, V).float()
    assert next_token_nll(sure[:, 1:], tokens).max() < 1e-6
    assert next_token_nll(sure[:, :-1], tokens).min() > 50


def test_padding_is_neither_predicted_nor_pooled() -> None:
    module = sharpened(method(padding=0)).double()
    tokens = torch.tensor([[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 1]])
    alone = [module.losses({"input": row[None]})["loss"] for row in (tokens[0, :3], tokens[1])]
    expected = (2 * alone[0] + 5 * alone[1]) / 7
    torch.testing.assert_close(module.losses({"input": tokens})["loss"], expected)
    nothing = module.losses({"input": torch.zeros(2, 4, dtype=torch.int64)})["loss"]
    assert nothing == 0
    for pooling in ("mean", "last"):
        module.pooling = pooling
        torch.testing.assert_close(module.embed(tokens)[:1], module.embed(tokens[:1, :3]))


def test_padding_counts_over_all_ranks() -> None:
    """Rank one has 2 real targets, rank two 5: the mean over ranks of what each minimizes is that over
    the 7.
    """
    module = sharpened(method(padding=0)).double()
    tokens = torch.tensor([[3, 4, 5, 0, 0, 0], [6, 7, 8, 9, 10, 1]])
    together = module.losses({"input": tokens})["loss"]
    module.gather = lambda z: Gathered(torch.tensor([2.0, 5.0], dtype=z.dtype), 0)  # type: ignore[method-assign]
    each = [module.losses({"input": row[None]})["loss"] for row in tokens]
    torch.testing.assert_close((each[0] + each[1]) / 2, together)


def test_features_are_the_mean_or_the_last_state() -> None:
    tokens = torch.randint(0, V, (4, BLOCK))
    h = method().eval().encoder.states(tokens)
    torch.testing.assert_close(method().eval().embed(tokens), h.mean(1))
    torch.testing.assert_close(method(pooling="last").eval().embed(tokens), h[:, -1])
    # one more than a block: the last is only ever a target
    longer = torch.cat([tokens, tokens[:, :1]], 1)
    torch.testing.assert_close(method().eval().embed(longer), h.mean(1))


class Chain(SSLDataModule):
    """Token t + 1 follows t, except in every second sample; batches of unlike size and difficulty."""

    def dataset(self, split: Any) -> Any:
        class Rows(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return 20

            def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
                generator = torch.Generator().manual_seed(1)
                rows = torch.stack([(torch.arange(9) + i) % V for i in range(20)])
                rows[12:] = torch.randint(0, V, (8, 9), generator=generator)
                return {"input": rows[indices], "label": torch.full((len(indices),), -1)}

        return Rows()


def test_perplexity_at_validation_is_that_of_the_whole_split(tmp_path: Any) -> None:
    """Not the mean of the batches' perplexities, of which the last is smaller and harder."""
    module, data = sharpened(method()), Chain(batch_size=12)
    trainer = trainer_for(tmp_path)
    trainer.validate(module, data, verbose=False)
    loss = module.losses({"input": data.dataset("val").__getitems__(list(range(20)))["input"]})["loss"]
    metrics = trainer.callback_metrics
    assert metrics["val/loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["val/perplexity"].item() == pytest.approx(loss.exp().item(), rel=1e-5)
    assert metrics["val/bits_per_token"].item() == pytest.approx(loss.item() / math.log(2), rel=1e-5)


class Padded(Chain):
    """``Chain``, of which sample i has only i % 8 + 2 tokens: batches hold different numbers."""

    pad_id = V - 1

    def dataset(self, split: Any) -> Any:
        rows = super().dataset(split)
        fetch = rows.__getitems__

        def padded(indices: list[int]) -> dict[str, Tensor]:
            batch = fetch(indices)
            short = torch.arange(9) >= torch.tensor(indices)[:, None] % 8 + 2
            return {**batch, "input": (batch["input"] % self.pad_id).masked_fill(short, self.pad_id)}

        type(rows).__getitems__ = lambda self, indices: padded(indices)
        return rows


def test_terms_of_a_split_do_not_depend_on_the_batch_size(tmp_path: Any) -> None:
    """With padding, batches predict different numbers of tokens: at validation and in the report."""
    module = sharpened(method(padding=V - 1))
    together = module.losses({"input": Padded().dataset("val").__getitems__(list(range(20)))["input"]})
    expected = together["loss"].item()
    for size in (1, 3, 20):
        trainer, data = trainer_for(tmp_path), Padded(batch_size=size)
        trainer.validate(module, data, verbose=False)
        assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected, rel=1e-5)
        assert trainer.callback_metrics["val/perplexity"].item() == pytest.approx(
            math.exp(expected), rel=1e-5
        )
        terms = held_out_terms(module, data, torch.device("cpu"))
        assert terms == pytest.approx(
            {"loss": expected, "bits_per_token": expected / math.log(2), "perplexity": math.exp(expected)}
        )


def test_padding_is_that_of_the_data(tmp_path: Any) -> None:
    """Left unset, padding would count as text; set for data without any, a token would not count."""
    for module, data, told in (
        (
            method(),
            Padded(batch_size=4),
            f"Padded pads short samples with token {V - 1}, but padding is None: give --model.padding "
            f"{V - 1}, otherwise padding is treated as text",
        ),
        (
            method(padding=0),
            Chain(batch_size=4),
            "Chain has no padding, but padding is 0: give --model.padding null, otherwise samples are "
            "treated as padding",
        ),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
            trainer_for(tmp_path, max_epochs=1).fit(module, data)
        with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
            check_fit(module, data, 1)
        with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
            Language().measure(module, data, torch.device("cpu"))


def test_it_learns_a_chain(tmp_path: Any) -> None:
    """Of tokens that always follow each other the loss goes to 0, and what it continues is right."""
    for network in ("gpt", "gru"):
        module = method(NETWORKS[network]())
        tokens = torch.stack([(torch.arange(BLOCK) + i) % V for i in range(V)])
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(80):
            loss = module.losses({"input": tokens})["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.1
        assert module.eval().extend(torch.tensor([[3, 4]]), 6, temperature=0).tolist() == [
            [3, 4, 5, 6, 7, 8, 9, 10]
        ]


# ---- sampling ----------------------------------------------------------------------------------------------


def test_choose_draws_from_the_distribution() -> None:
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)) * 2
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        counts = torch.bincount(choose(logits.expand(100_000, -1), uniform, temperature, top_k), minlength=6)
        p = (logits[0] / temperature).softmax(0)
        if top_k is not None:
            p[p < p.topk(top_k).values[-1]] = 0
            assert (counts > 0).sum() == top_k
        torch.testing.assert_close(counts / 100_000, p / p.sum(), atol=1e-4, rtol=0)


def test_choose_at_its_ends() -> None:
    logits = torch.tensor([[-math.inf, 1.0, 3.0, 2.0, -math.inf]])
    assert choose(logits, torch.tensor([0.5]), temperature=0).item() == 2
    assert choose(logits, torch.tensor([0.0])).item() == 1  # never a token of probability 0
    assert choose(logits, torch.tensor([1 - 2**-24])).item() == 3
    assert choose(logits, torch.tensor([0.999]), top_k=1).item() == 2


def test_continuing_past_the_block_reads_the_last_block_only() -> None:
    """Against the plain loop of nanoGPT: crop, one whole pass, take the likeliest."""
    for network in NETWORKS.values():
        module = sharpened(method(network()))
        tokens = torch.randint(0, V, (3, 5))
        limit = module.encoder.block_size
        expected = tokens
        with torch.no_grad():
            for _ in range(20):
                context = expected if limit is None else expected[:, -limit:]
                following = module.logits(module.encoder.states(context))[:, -1].argmax(1, keepdim=True)
                expected = torch.cat([expected, following], 1)
        got = module.extend(tokens, 20, temperature=0)
        assert torch.equal(got, expected)
        assert got.unique(dim=0).shape[0] > 1


def test_a_long_prompt_is_cropped() -> None:
    module = sharpened(method())
    tokens = torch.randint(0, V, (1, 3 * BLOCK))
    got = module.extend(tokens, 1, temperature=0)
    assert torch.equal(got[:, :-1], tokens)
    assert torch.equal(got[:, -1:], module.extend(tokens[:, -BLOCK:], 1, temperature=0)[:, -1:])


def test_padding_and_the_begin_token_are_never_drawn() -> None:
    module = method(padding=4).eval()
    assert (module.extend(torch.zeros(50, 1, dtype=torch.int64), 10)[:, 1:] != 4).all()
    pictures = method(GPTEncoder(3, 4, 16, 1, 2), pixels=PixelTokens((1, 2, 2), 2)).eval()
    first = torch.full((100, 1), 2)
    assert (pictures.extend(first, 4)[:, 1:] < 2).all()


def test_samples_of_tokens() -> None:
    module = method().eval()
    samples = module.sample(7)
    assert samples.shape == (7, BLOCK) and samples.min() >= 0 and samples.max() < V
    assert module.sample(2, 30).shape == (2, 30)
    assert len(module.sample(200, 1).unique()) == V


# ---- images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_every_8_bit_value_finds_its_level(levels: int) -> None:
    pixels = PixelTokens((1, 16, 16), levels)
    images = torch.arange(256.0).view(1, 1, 16, 16) / 255
    tokens = pixels(images)
    assert tokens[0, 0] == levels == pixels.begin
    assert tokens[0, 1:].tolist() == [value * levels // 256 for value in range(256)]
    back = pixels.decode(tokens)
    assert torch.equal(pixels(back), tokens)
    assert ((back - images).abs() <= 128 / levels / 255 + 1e-6).all()
    if levels == 256:
        torch.testing.assert_close(back, images)


def test_the_order_of_values_is_rows_then_columns_then_channels() -> None:
    pixels = PixelTokens((2, 2, 3))
    images = torch.randint(0, 256, (4, 2, 2, 3)) / 255
    expected = [images[1, c, y, x] for y in range(2) for x in range(3) for c in range(2)]
    tokens = pixels(images)
    assert tokens[1, 1:].tolist() == [round(255 * float(v)) for v in expected]
    torch.testing.assert_close(pixels.decode(tokens), images)


def pictures() -> GPT:
    return method(GPTEncoder(17, 24, 16, 1, 2), pixels=PixelTokens((1, 6, 4), 16)).eval()


def test_bits_per_dimension_count_every_pixel_once() -> None:
    """The first one too; a uniform guess costs log2 of the levels, and the begin token is no target."""
    module = pictures()
    with torch.no_grad():
        module.encoder.token_embedding.weight.zero_()
    bits = module.losses({"input": torch.rand(3, 1, 6, 4)})["bits_per_dimension"]
    assert bits.item() == pytest.approx(math.log2(17))
    assert next_token_nll(torch.zeros(3, 24, 17), module.tokens(torch.rand(3, 1, 6, 4))).shape == (3, 24)


@pytest.mark.parametrize("network", [lambda: GPTEncoder(17, 48, 16, 2, 2), lambda: RecurrentEncoder(17, 16)])
def test_a_value_is_predicted_from_those_before_it_alone(network: Any) -> None:
    """Of color images too: the values of a pixel come one after the other. By value, and by the gradient of
    the prediction of one value with respect to what stands for every token.
    """
    module = sharpened(method(network(), pixels=PixelTokens((2, 6, 4), 16)).double())
    images = torch.rand(1, 2, 6, 4).double()
    with torch.no_grad():
        before = module.logits(module.encoder.states(module.tokens(images)[:, :-1]))  # row s predicts value s
    for value in (0, 1, 19, 46):
        pixel, channel = divmod(value, 2)
        changed = images.clone()
        changed[0, channel, pixel // 4, pixel % 4] = (changed[0, channel, pixel // 4, pixel % 4] + 0.5) % 1
        with torch.no_grad():
            after = module.logits(module.encoder.states(module.tokens(changed)[:, :-1]))
        torch.testing.assert_close(after[:, : value + 1], before[:, : value + 1])
        assert (after[:, value + 1] - before[:, value + 1]).abs().max() > 1e-6
        vectors: list[Tensor] = []
        handle = module.encoder.token_embedding.register_forward_hook(
            lambda layer, args, out, kept=vectors: kept.append(out.retain_grad() or out)  # type: ignore[func-returns-value]
        )
        module.logits(module.encoder.states(module.tokens(images)[:, :-1]))[0, value].sum().backward()
        handle.remove()
        reached = vectors[0].grad[0].abs().sum(1) > 0  # type: ignore[union-attr]
        assert reached[: value + 1].all() and not reached[value + 1 :].any()


def test_completions_keep_the_upper_half() -> None:
    module = pictures()
    images = torch.randint(0, 16, (5, 1, 6, 4)) * 16 / 255
    completed = module.complete(images)
    assert completed.shape == images.shape
    assert torch.equal(module.tokens(completed)[:, :13], module.tokens(images)[:, :13])
    assert not torch.equal(module.tokens(completed)[:, 13:], module.tokens(images)[:, 13:])
    samples = module.sample(3)
    assert samples.shape == (3, 1, 6, 4) and samples.min() >= 0 and samples.max() <= 1
    assert module.embed(images).shape == (5, 16)


def test_completions_of_tokens_keep_the_first_half() -> None:
    module, tokens = method().eval(), torch.randint(0, V, (4, 8))
    completed = module.complete(tokens)
    assert completed.shape == (4, 8) and torch.equal(completed[:, :4], tokens[:, :4])


# ---- what cannot work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPTEncoder(0), "vocab_size must be at least 1, got 0"),
        (lambda: GPTEncoder(5, width=16, heads=3), r"heads must be a divisor of width \(16\), got 3"),
        (lambda: GPTEncoder(5, dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: RecurrentEncoder(5, cell="rnn"), "cell must be one of gru, lstm, got 'rnn'"),  # type: ignore[arg-type]
        (lambda: PixelTokens((1, 2, 2), 10), "levels must be a power of two from 2 to 256, got 10"),
        (lambda: PixelTokens((1, 2)), "image_shape must be three sizes"),  # type: ignore[arg-type]
        (lambda: method(pooling="max"), "pooling must be one of mean, last, got 'max'"),
        (lambda: method(padding=V), rf"padding must be in \[0, {V}\), got {V}"),
        (
            lambda: method(pixels=PixelTokens((1, 2, 2))),
            rf"vocab_size must be pixels.levels \+ 1 \(257\), got {V}",
        ),
        (
            lambda: method(nn.Linear(2, 2)),
            r"^encoder must be a causal network over tokens \(CausalEncoder: GPTEncoder, RecurrentEncoder\), "
            "got Linear$",
        ),
        (lambda: method().extend(torch.zeros(1, 0, dtype=torch.int64), 1), "at least one token"),
        (
            lambda: method().extend(torch.zeros(1, 1, dtype=torch.int64), 1, temperature=-1),
            "temperature must be",
        ),
        (
            lambda: method().extend(torch.zeros(1, 1, dtype=torch.int64), 1, top_k=0),
            "top_k must be at least 1, got 0",
        ),
        (
            lambda: method().complete(torch.zeros(1, 2, dtype=torch.int64), keep=2),
            r"keep must be in \[0, 1\], got 2",
        ),
        (
            lambda: NETWORKS["gpt"]()(torch.zeros(1, 13, dtype=torch.int64)),
            "13 tokens in a row, more than block_size 12",
        ),
        (lambda: pictures().embed(torch.rand(1, 1, 4, 6)), "image_shape is"),
    ],
)
def test_a_knob_out_of_range_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("module", "x", "message"),
    [
        (
            method,
            torch.full((2, 5), V),
            f"the data has token {V}, but the encoder knows only {V} tokens: increase "
            "model.encoder.vocab_size",
        ),
        (
            method,
            torch.zeros(2, BLOCK + 2, dtype=torch.int64),
            "samples of 14 tokens are longer than block_size",
        ),
        (method, torch.zeros(2, 1, dtype=torch.int64), "no next one to predict"),
        (method, torch.rand(2, 1, 4, 4), "for images set model.pixels to PixelTokens"),
        (pictures, 2 * torch.rand(2, 1, 6, 4) - 1, "set data.mean to 0 and data.std to 1"),
    ],
)
def test_data_that_does_not_fit_is_named(module: Any, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module().check_batch({"input": x})
