# %% [markdown]
# # 5. From a laptop to SLURM
#
# The same command runs on a laptop, on several GPUs and in a batch job. This takes under two minutes on two
# CPU cores.
#
# ## Stop and resume
#
# Start a run in the background, and end it as a scheduler would, with SIGTERM:

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml --trainer.max_epochs 20 --trainer.enable_progress_bar false \
#     --run_dir run > log.txt 2>&1 &
# for second in $(seq 100); do [ -f run/checkpoints/last.ckpt ] && break; sleep 1; done
# kill -TERM $!
# wait $! || echo "exit status $?"
# tail -n 1 log.txt

# %% [markdown]
# Exit status 143 means that the run saved its state and ended because of SIGTERM. Repeat the same command,
# and it continues at the step where it stopped:

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml --trainer.max_epochs 20 --trainer.enable_progress_bar false \
#     --run_dir run

# %% [markdown]
# On a CPU the result is the same, bit for bit, as that of a run without a stop ([resuming](../resuming.md)).
#
# ## Several processes
#
# Here two processes on the CPU stand in for two GPUs. `batch_size` is per process: halving it leaves the
# batch of a step, and so the right learning rate, unchanged.

# %% [bash]
# ssl-train --config configs/digits/simclr.yaml --data.batch_size 128 \
#     --trainer.devices 2 --trainer.accelerator cpu --trainer.max_epochs 2 \
#     --trainer.enable_progress_bar false --run_dir two

# %% [markdown]
# On a machine with 8 GPUs: `--trainer.devices 8`.
#
# ## SLURM
#
# From the project's folder on the cluster:
#
# ```
# sbatch cluster/slurm.sbatch --config configs/imagenet/simclr.yaml --data.root DIR
# sbatch --nodes=4 cluster/slurm.sbatch --config configs/imagenet/simclr.yaml --data.root DIR
# sbatch --array=0-4 cluster/slurm.sbatch --config configs/imagenet/simclr.yaml --data.root DIR
# ```
#
# The first line uses one node with 8 GPUs, the second four nodes for one run, and the third starts five runs
# with seeds 0 to 4. The top of `cluster/slurm.sbatch` has the lines to adapt: time, GPUs, and how to find
# Python. Two minutes before the time limit the run saves; the job returns to the queue and resumes.
#
# Before you queue a long job, try a short one in the same environment:
#
# ```
# sbatch --time=00:20:00 cluster/slurm.sbatch --config configs/imagenet/simclr.yaml --data.root DIR \
#     --trainer.max_epochs 1 --trainer.limit_train_batches 50
# ```
#
# `time/samples_per_s` and `time/data_wait_share` in TensorBoard show how fast it is, and whether the GPUs
# wait for data.
#
# ## TensorBoard from the cluster
#
# TensorBoard has no password, so keep it on localhost and use a tunnel:
#
# ```
# tensorboard --logdir runs --port 6006                  # on the cluster
# ssh -N -L 6006:localhost:6006 USER@LOGIN               # on your machine, then http://localhost:6006
# ```
#
# For searches over settings, Kubernetes, precision and very large encoders see
# [clusters](../clusters.md).
