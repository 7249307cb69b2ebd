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
# The report of this run is a first answer. It compares the frozen encoder (`pretrained`) with `random_init`
# and `raw_input`. The column `5-shot` shows how good the features are with five labels per class.
#
# ## Fine-tune
#
# Fine-tuning trains an encoder and a classifier on labels. It is a method like any other. With `--init_from`
# it starts from the weights of a run; without, it trains from scratch, which is the baseline.

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
# Digits are easy, and a thousand labels are plenty for them, so expect the two to be close. Pre-training pays
# off when there are few labels and many images without labels. Before you believe a difference, repeat both
# runs with `--seed_everything 1` and `2`. `ssl-eval labels pretrained` compares both for several numbers of
# labels.
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
# `preprocess.json` has the mean and standard deviation to standardize images with, and `README.md` is a model
# card with the results.
#
# You can use any timm model as an encoder by its name, and its weights are exported under timm's names. Two
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
# Other formats: [exporting](../exporting.md).
