# %% [markdown]
# # 1. Your own folder of images
#
# Pre-train on a folder of images, and measure whether it helped. This takes under two minutes on two CPU
# cores, without a download.
#
# Install the project first: `pip install -e .` in the repository. Then work in any folder.
#
# ## The images
#
# This cell writes a folder of small images, so that the tutorial runs anywhere. You can use your own folder
# instead: any tree of JPEG or PNG files, with one folder per class if you have labels.

# %%
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    folder = Path("photos") / f"digit_{label}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255 / 16).astype("uint8")).save(folder / f"{number:04}.png")

# %% [markdown]
# There is no `train`, `val` or `test` folder, so the run holds out a fifth of the images as the test split
# and a tenth of the rest for validation, stratified by class. If your folder has splits, they are used
# ([the rule](../data/splits.md)).
#
# ## Train
#
# Start from a configuration for images of a similar size, and replace its data set. These images are gray
# and 8 pixels wide. For color photographs, use `--config configs/folder/simclr.yaml` and `--data.root DIR`
# instead, on a GPU or with the options in the [FAQ](../faq.md#how-do-i-train-on-my-own-images). In a terminal
# leave out `enable_progress_bar`; it is here because progress bars clutter a notebook.

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml --data ImageFolder --data.root photos \
#     --data.image_size 8 --data.channels 1 --data.mean '[0.3]' --data.std '[0.38]' \
#     --trainer.max_epochs 15 --trainer.enable_progress_bar false --run_dir run

# %% [markdown]
# The table at the end compares the trained network (`pretrained`) with the same network before training
# (`random_init`) and with plain pixels (`raw_input`), on images that were not used for training.
# Pre-training has helped if the first row is clearly above the other two. Often `5-shot` shows it best: with
# few labels, good features matter most.
#
# ## Look
#
# `tensorboard --logdir run` shows the curves under Custom Scalars, and under Images what the method saw
# (`views`). Look at the views once before any long run: you should be able to recognize your images in them.
#
# ## Without labels
#
# If you ignore the class folders, the run has no accuracies, but the loss and the collapse metrics still show
# whether it learns.

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml --data ImageFolder --data.root photos --data.labeled false \
#     --data.image_size 8 --data.channels 1 --data.mean '[0.3]' --data.std '[0.38]' \
#     --trainer.max_epochs 2 --trainer.enable_progress_bar false --run_dir unlabeled

# %% [markdown]
# ## Use the features
#
# One file with the features of every image, its label, split and path:

# %% [bash]
# ssl-eval features run features.npz

# %%
import numpy as np

arrays = np.load("features.npz")
h = arrays["features"] / np.linalg.norm(arrays["features"], axis=1, keepdims=True)
[query, *nearest] = np.argsort(-h @ h[0])[:6]
print("most like", arrays["files"][query], "are", arrays["files"][nearest].tolist())

# %% [markdown]
# More: [using what was trained](../using_what_was_trained.md), [FAQ](../faq.md).
