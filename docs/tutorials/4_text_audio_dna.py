# %% [markdown]
# # 4. Text, audio and DNA
#
# The commands are the same as for images; the configuration chooses the data. This takes under two minutes on
# two CPU cores, without a download. The runs are short: they show the steps, not the best possible results.
#
# ## Text
#
# Without a root, `TextFiles` reads the Python language reference that comes with Python. A GPT learns to
# predict the next character.

# %% [bash]
# ssl-train --config configs/text/gpt.yaml --trainer.max_epochs 1 \
#     --trainer.limit_train_batches 30 --trainer.limit_val_batches 10 \
#     --trainer.enable_progress_bar false --run_dir text

# %% [markdown]
# The report gives the loss in nats per character beside two tables that need no network: how often each
# character occurs (`unigram`), and how often each pair does (`bigram`). After this little training the GPT
# is somewhere between them. Let it continue a text:

# %% [bash]
# ssl-eval generate text 80 --prompt "The statement " --temperature 0.8

# %% [markdown]
# Your own text: `--data.root FILE_OR_FOLDER`, also CSV and JSON lines ([text](../data/text.md)).
#
# ## Audio
#
# `Tones` synthesizes short melodies. APC learns to predict the spectrogram a few frames ahead.

# %% [bash]
# ssl-train --config configs/tones/apc.yaml --trainer.max_epochs 1 \
#     --trainer.enable_progress_bar false --run_dir audio

# %% [markdown]
# The classes are the contours of the melodies. After one epoch the trained network (`pretrained`) is ahead of
# the untrained one in the linear probe, but behind the plain spectrogram (`raw_input`). Every result comes
# with such baselines, so you notice this.
#
# Your own sounds: `--data WavFolder --data.root DIR` ([audio](../data/audio.md)).
#
# ## DNA
#
# This cell writes a small artificial genome; in its genes, every third base is mostly G or C. You would use
# your own FASTA and GFF files instead.

# %%
import random
from pathlib import Path

random.seed(0)
genome, genes = [], []
for number in range(40):
    start = sum(map(len, genome))
    genome.append("".join(random.choices("ACGT", k=1500)))
    codons = ("".join(random.choices("ACGT", k=2)) + random.choice("GGGCCCAT") for _ in range(500))
    genome.append("".join(codons))
    genes.append(f"chr1\tmade\tCDS\t{start + 1501}\t{start + 3000}\t.\t+\t0\tID=gene{number}")
Path("genome.fa").write_text(">chr1\n" + "".join(genome) + "\n")
Path("genome.gff").write_text("##gff-version 3\n" + "\n".join(genes) + "\n")

# %% [bash]
# ssl-train --config configs/dna/gpt.yaml --data.root genome.fa --data.gff genome.gff \
#     --trainer.max_epochs 1 --trainer.limit_train_batches 30 \
#     --trainer.enable_progress_bar false --run_dir dna

# %% [markdown]
# The probes distinguish coding from non-coding windows. The baseline to beat is `kmers`, the counts of all
# words of four bases. After so few steps the network is hardly better than before training (`random_init`)
# ([DNA](../data/sequences.md)).
#
# ## Features of any kind
#
# One command works for all of them:

# %% [bash]
# for run in text audio dna; do ssl-eval features $run $run.npz; done

# %%
import numpy as np

for run in ("text", "audio", "dna"):
    print(run, np.load(f"{run}.npz")["features"].shape)
