# %% [markdown]
# # 2. Did it help? Fine-tune, and export
#
# Does pre-training help on your labels? Train the same network on them twice, from random weights and from
# pre-trained ones, and compare. Then take the network to other libraries. Under two minutes on two CPU
# cores.
#
# ## Pre-train

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml --trainer.max_epochs 15 --trainer.check_val_every_n_epoch 15 \
#     --trainer.enable_progress_bar false --run_dir pretrained

# %% [markdown]
# The report of this run is a first answer: `pretrained` beside `random_init` and `raw_input`, with the
# encoder frozen. The column `5-shot` says what the features are worth with five labels per class.
#
# ## Fine-tune
#
# Fine-tuning trains encoder and classifier on labels. It is a method like any other. `--init_from` gives it
# the weights of a run; without it, the same command trains from scratch, which is the baseline.

# %% [bash]
# ssl-train --config configs/digits/finetune.yaml --trainer.max_epochs 6 \
#     --trainer.enable_progress_bar false --run_dir scratch
# ssl-train --config configs/digits/finetune.yaml --trainer.max_epochs 6 \
#     --trainer.enable_progress_bar false --run_dir tuned --init_from pretrained

# %%
import json
from pathlib import Path

for run in ("scratch", "tuned"):
    print(run, json.loads(Path(run, "results.json").read_text())["classifier"])

# %% [markdown]
# Digits are easy, and a thousand labels are many for them, so expect the two to be close. Pre-training pays
# where labels are few and images without labels are many. Before you believe a difference, repeat both with
# `--seed_everything 1` and `2`.
#
# The test split is read once, at the end; the best epoch is chosen on `val`. On your own data use the same
# commands with `--data ImageFolder --data.root DIR`, as in [tutorial 1](1_own_images.ipynb), and
# `--model.num_classes`. More: [weights](../weights.md).
#
# ## Export
#
# One file that needs neither this project nor its classes:

# %% [bash]
# ssl-eval export pretrained exported --format pt2
# ls exported

# %%
import torch

network = torch.export.load("exported/model.pt2").module()
print(network(torch.zeros(4, 1, 8, 8)).shape)

# %% [markdown]
# `preprocess.json` says how images have to be standardized, and `README.md` is a model card with the
# results.
#
# A timm network goes back to timm under its own names. Any timm model is an encoder by its name. Two
# batches are enough to show it:

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml \
#     --model.encoder resnet10t --model.encoder.init_args.in_channels 1 --trainer.max_epochs 1 \
#     --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.check_val_every_n_epoch 1 \
#     --trainer.enable_progress_bar false --evaluate false --run_dir resnet
# ssl-eval export resnet for_timm

# %%
import timm
from safetensors.torch import load_file

model = timm.create_model("resnet10t", in_chans=1, num_classes=0)
print(model.load_state_dict(load_file("for_timm/model.safetensors"), strict=True))

# %% [markdown]
# Formats: [using what was trained](../using_what_was_trained.md).
