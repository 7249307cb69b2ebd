"""What the framework costs a GPT's training step, and BERT's masks beside those of transformers.

    python benchmarks/text.py --turns 100
    python benchmarks/text.py --reference tinyshakespeare.txt --seeds 0 1 2

Steps: the CPU setting of configs/shakespeare/gpt.yaml (0.8 million weights, 12 windows of 64 characters) on
the text that Python carries. "ours" is what ``python train.py`` runs: ``SSLCommandLine`` builds method, data
and Trainer with the default callbacks and the TensorBoard log; validation and checkpoints are off. "loop" is
nanoGPT's training loop in a few lines on the same network: windows at random places, the same optimizer,
schedule and clipping, the loss printed every ten steps.

Masks: 15 % of a batch of ``--batch`` x ``--length`` word pieces. "MaskedTokens" draws them for the whole
batch; "collator" is transformers' DataCollatorForLanguageModeling on a list of samples, as a DataLoader's
worker calls it, with the special tokens' places given; "collator's core" is its ``torch_mask_tokens`` on a
tensor that is ready.

Both sides take turns, within one process and every ten steps (masks: within a round), so that a slow moment
of the machine hits both; a share or ratio is taken within a turn, then median and range over the turns. On
the CPU one thread computes, and the time is the CPU time of the whole process, which other programs do not
count into; on CUDA it is the clock's.

``--reference``: the loop for the configuration's 2,000 steps, and its loss on the whole validation split.
nanoGPT prints a mean over 240 random windows; the scatter of such a mean is printed beside it. Run beside
configs/shakespeare/gpt.yaml it shows whether the framework changes the result.

Exit status: 0 measured, whether the target is met or not; 2 bad arguments; 3 not run (no GPU, or transformers
is missing).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from benchmarks.parts.rounds import interleave, not_run, ratios
from benchmarks.parts.training import fit, silence
from datamodules import TextFiles
from datamodules.text.tokenizer import SPECIALS, Tokenizer, train_tokenizer
from datamodules.transforms.tokens import MaskedTokens
from runtime.environment import describe_environment
from sslmodules import GPT
from sslmodules.gpt import next_token_nll
from sslmodules.networks import GPTEncoder
from sslmodules.optim import decay_groups, warmup_cosine

CONFIG = Path(__file__).resolve().parents[1] / "configs/shakespeare/gpt.yaml"
BLOCK, BATCH = 64, 12
TURN = 10  # steps that one side makes before the other: the logging happens once in each
DRAWN = 240  # windows of nanoGPT's estimate of a loss: 20 batches
TARGET = 5.0  # percent of a step


def now(device: torch.device) -> float:
    """Seconds: CPU time of all threads, or on a GPU the clock's after its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


class Turns(Callback):
    """After every ``TURN`` steps of the Trainer, as many of the loop; seconds of both by turn, without the
    first one's.

    Args:
        bare: ``loop``, a step with each ``next``.
    """

    def __init__(self, bare: Iterator[int]) -> None:
        self.bare, self.mark = bare, 0.0
        self.ours: list[float] = []
        self.loop: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if trainer.global_step % TURN:
            return
        before = now(pl_module.device)
        for _ in range(TURN):
            next(self.bare)
        after = now(pl_module.device)
        if trainer.global_step > TURN:  # the first turn warms up
            self.ours.append(before - self.mark)
            self.loop.append(after - before)
        self.mark = after


def take_turns(tokens: Tensor, args: argparse.Namespace) -> Turns:
    """A training as train.py runs it, with the loop's steps between its own."""
    steps = TURN * (args.turns + 1)
    turns = Turns(loop(network(128, torch.device(args.device)), tokens, steps))
    options = ["--config", str(CONFIG), "--model.encoder.vocab_size", "128"]
    options += ["--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1"]
    options += ["--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"]
    options += ["--trainer.accelerator", args.device, "--trainer.devices", "1"]
    fit(options, turns)
    return turns


def network(vocab_size: int, device: torch.device) -> GPT:
    """As the configuration's."""
    encoder = GPTEncoder(vocab_size, block_size=BLOCK, width=128, depth=4, heads=4, bias=False)
    return GPT(encoder, optimizer=torch.optim.AdamW).to(device)


def loop(model: GPT, tokens: Tensor, steps: int, quiet: bool = True) -> Iterator[int]:
    """nanoGPT's loop: its batches, clipping, schedule and groups of parameters.

    Args:
        model: network with its tied output layer, trained in place.
        tokens: (n,) int64 on the CPU.
        steps: how many, and the length of the schedule.
        quiet: read the loss every ten steps without printing it.

    Yields:
        The number of each step, from 1, when it is done.
    """
    device, factor = model.device, warmup_cosine(steps, min(100, steps), 0.1)
    optimizer = torch.optim.AdamW(decay_groups(model), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor(step)
        starts = torch.randint(len(tokens) - BLOCK, (BATCH,))
        x = torch.stack([tokens[i : i + BLOCK] for i in starts]).to(device)
        y = torch.stack([tokens[i + 1 : i + 1 + BLOCK] for i in starts]).to(device)
        logits = model.logits(model.encoder.states(x))
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            value = loss.item()
            if not quiet and step % 500 == 0:
                print(f"step {step}: {value:.4f}", flush=True)
        yield step + 1


def line(name: str, values: list[float], unit: str, digits: int = 0) -> str:
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{name:42} {middle:>12} {unit}  ({low} to {high})"


def sureness(values: list[float]) -> tuple[float, float]:
    """Interval that holds the median with 95 % confidence: two order statistics, by the binomial's normal
    approximation.
    """
    n, half = len(values), 0.98 * math.sqrt(len(values))
    ordered = sorted(values)
    return ordered[max(0, math.floor(n / 2 - half))], ordered[min(n - 1, math.ceil(n / 2 + half))]


def measure_steps(args: argparse.Namespace) -> None:
    data = TextFiles(length=BLOCK + 1, batch_size=BATCH)
    tokens = torch.from_numpy(data.dataset("train").flat.astype("int64"))  # type: ignore[attr-defined]
    turns = take_turns(tokens, args)
    for name, seconds in (("ours", turns.ours), ("loop", turns.loop)):
        print(line(f"GPT step, {name}", [TURN * BATCH * BLOCK / s for s in seconds], "tokens/s"))
    shares = [100 * (1 - bare / mine) for mine, bare in zip(turns.ours, turns.loop, strict=True)]
    low, high = sureness(shares)
    verdict = "PASS" if statistics.median(shares) <= TARGET else "MISS"
    print(
        f"{line('framework share of a step, 1 - ours/loop', shares, '%', 1)}  {verdict} (target <= "
        f"{TARGET:g} %)"
    )
    print(f"{'':42} its median, 95 %: {low:.1f} to {high:.1f} %, of {len(shares)} turns of {TURN} steps")


def collator(tokenizer: Tokenizer) -> Any:
    """transformers' collator for the same vocabulary."""
    from tokenizers import Tokenizer as Fast
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=Fast.from_str(tokenizer.to_json()), **names)
    return DataCollatorForLanguageModeling(fast, mlm_probability=0.15)


def measure_masks(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    data = TextFiles(layout="documents", length=args.length)
    texts = [document.text for document in data._documents()]
    tokenizer = train_tokenizer("wordpiece", texts, 2000, specials=True)
    flat = torch.cat([torch.from_numpy(ids) for ids in tokenizer.encode(texts)])
    tokens = flat[: args.batch * args.length].view(args.batch, args.length).clone()
    tokens[:, 0], tokens[:, -1] = 2, 3  # [CLS] and [SEP]
    special = (tokens < len(SPECIALS)).long()
    samples = [
        {"input_ids": ids, "special_tokens_mask": mask}
        for ids, mask in zip(tokens.tolist(), special.tolist(), strict=True)
    ]
    views, theirs = MaskedTokens(next_sentence=False), collator(tokenizer)
    views.set_tokenizer(tokenizer)
    there, special_there = tokens.to(device), special.to(device)
    generator = torch.Generator(device).manual_seed(0)

    def masked() -> None:
        views(there, views.draw(there, generator))

    ways: dict[str, Callable[[], Any]] = {
        "MaskedTokens": masked,
        "collator": lambda: theirs(samples)["input_ids"].to(device),
        "collator's core": lambda: theirs.torch_mask_tokens(there.clone(), special_there),
    }

    def tokens_per_second(way: Callable[[], Any]) -> float:
        start = now(device)
        for _ in range(args.repeats):
            way()
        return args.repeats * tokens.numel() / (now(device) - start)

    runs = {name: partial(tokens_per_second, way) for name, way in ways.items()}
    rates = interleave(runs, args.rounds, warm_up=1)
    for name, values in rates.items():
        print(line(f"masks, {name}", values, "tokens/s"))
    for name in ("collator", "collator's core"):
        print(line(f"MaskedTokens / {name}", ratios(rates["MaskedTokens"], rates[name]), "x", 2))


@torch.no_grad()
def validation_losses(model: GPT, data: TextFiles) -> Tensor:
    """Mean nats per token of each window of the whole validation split."""
    nll = []
    for batch in data.val_dataloader()[0]:
        tokens = batch["input"].to(model.device)
        nll.append(next_token_nll(model.logits(model.encoder.states(tokens[:, :-1])), tokens).mean(1))
    return torch.cat(nll)


def reference(args: argparse.Namespace) -> None:
    data = TextFiles(root=str(args.reference), length=BLOCK + 1, batch_size=BATCH)
    data.prepare_data()
    data.setup("fit")
    tokens = torch.from_numpy(data.dataset("train").flat.astype("int64"))  # type: ignore[attr-defined]
    losses = []
    for seed in args.seeds:
        torch.manual_seed(seed)
        model = network(data.vocab_size, torch.device(args.device))
        for _ in loop(model, tokens, 2000, quiet=False):
            pass
        windows = validation_losses(model.eval(), data)
        losses.append(float(windows.mean()))
        noise = float(windows.std()) / math.sqrt(DRAWN)
        print(
            f"seed {seed}: validation loss {losses[-1]:.4f}; of {DRAWN} random windows +- {noise:.4f}",
            flush=True,
        )
    spread = f" +- {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
    print(f"nanoGPT's loop: {statistics.mean(losses):.4f}{spread}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=100, help="of each side, each of 10 steps")
    parser.add_argument("--rounds", type=int, default=7, help="of the masks")
    parser.add_argument("--batch", type=int, default=64, help="rows of the masks")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row of the masks")
    parser.add_argument("--repeats", type=int, default=20, help="batches of masks in each round")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", help="only train the loop on this text, and print its loss"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --reference")
    args = parser.parse_args()
    for name, least in (("turns", 1), ("rounds", 1), ("batch", 1), ("length", 8), ("repeats", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        return not_run("not run: no GPU")
    environment = describe_environment()
    print(", ".join(f"{name} {v}" for name, v in environment["versions"].items() if v != "not installed"))
    print(", ".join(f"{name} {v}" for name, v in environment["hardware"].items()))
    silence()
    torch.set_num_threads(1)
    if args.reference:
        reference(args)
        return 0
    try:
        import transformers  # noqa: F401
    except ImportError:
        return not_run("transformers is not installed: pip install -e '.[text]'")
    measure_steps(args)
    measure_masks(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
