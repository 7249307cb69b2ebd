# %% [markdown]
# # 3. Your own method
#
# A method is one class: its networks, and the loss of a batch. This one pulls two views of an image
# together and spreads images over the sphere (Wang and Isola 2020). This takes under two minutes on two CPU
# cores.
#
# ## The class
#
# Write it to a file in the current folder. That is all you have to write: the base class brings the training
# loop, the learning-rate schedule, several GPUs, checkpoints, resuming, probes and logging.

# %% [bash]
# cat > mine.py <<'END'
# import torch
# from torch import Tensor
# from torch.nn import functional as F
#
# from datamodules.base import Batch
# from sslmodules import SSLModule
# from sslmodules.networks import Encoder
#
#
# class AlignUniform(SSLModule):
#     """AlignUniform: views of an image close, images spread over the sphere (Wang & Isola 2020)."""
#
#     batch_keys = ("views",)
#
#     def __init__(self, encoder: Encoder, spread: float = 1.0, **kwargs) -> None:
#         super().__init__(**kwargs)
#         self.encoder, self.spread = encoder, spread
#
#     def losses(self, batch: Batch) -> dict[str, Tensor]:
#         a, b = (F.normalize(self.encoder(view), dim=1) for view in batch["views"])
#         align = (a - b).pow(2).sum(1).mean()
#         uniform = torch.pdist(a).pow(2).mul(-2).exp().mean().log()
#         return {"loss": align + self.spread * uniform, "align": align, "uniform": uniform}
# END

# %% [markdown]
# `"loss"` is minimized; the other terms become curves. A method must not use labels: they are for the probes.
#
# Arguments of `__init__` become options. `--model.help` lists them:

# %% [bash]
# ssl-train --model.help mine.AlignUniform --trust_config_classes mine | head -n 20

# %% [markdown]
# ## Train it
#
# Everything but the method comes from SimCLR's configuration: data, views, encoder, optimizer.
# `--trust_config_classes mine` allows the code of your package to run.

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml --model mine.AlignUniform --model.spread 0.5 \
#     --trust_config_classes mine --trainer.max_epochs 15 --trainer.enable_progress_bar false --run_dir own

# %% [markdown]
# ## Compare
#
# Train SimCLR with the same data, views, encoder and number of epochs:

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml --trainer.max_epochs 15 \
#     --trainer.enable_progress_bar false --run_dir simclr

# %%
import json
from pathlib import Path

for run in ("own", "simclr"):
    accuracies = json.loads(Path(run, "results.json").read_text())["results"]["pretrained"]
    print(run, {name: round(accuracies[name], 3) for name in ("linear_top1", "knn_top1", "fewshot_top1")})

# %% [markdown]
# One seed proves little. Repeat with `--seed_everything 1` and `2` before you believe a difference, and
# choose settings by `val/linear_top1`, never by the test split that this cell prints.
#
# ## Contribute it
#
# Move the class to a file in `sslmodules/` and add a YAML in `configs/`. The contract tests then check it
# automatically: every parameter gets a gradient, a resumed run ends with exactly the weights of an
# uninterrupted one, and two processes compute the same gradients as one.
# [Contributing](../../CONTRIBUTING.md) shows both files in full.
