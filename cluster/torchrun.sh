#!/usr/bin/env bash
# Pre-train with torchrun, without a scheduler, from the project's folder:
#
#   cluster/torchrun.sh --config configs/imagenet/simclr.yaml --data.root DIR --run_dir DIR
#   NODES=2 NODE=0 MASTER_ADDR=HOST cluster/torchrun.sh ...    on the first machine, whose name or address is HOST
#   NODES=2 NODE=1 MASTER_ADDR=HOST cluster/torchrun.sh ...    on the second
#
# --run_dir is needed, on a file system that all machines see: the same command resumes the run that is in it.
# To change, here or in the environment:
DEVICES=${DEVICES:-8}                 # processes on this machine, one per GPU
NODES=${NODES:-1}                     # machines
NODE=${NODE:-${RANK:-0}}              # the number of this one; RANK is what a PyTorchJob says
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} # of machine 0
MASTER_PORT=${MASTER_PORT:-29500}     # free there; another one for each run
SAVE_SECONDS=${SAVE_SECONDS:-300}     # from SIGTERM to SIGKILL: above the longest batch + one save
PYTHON=${PYTHON:-python}
set -euo pipefail

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}             # the CPUs are for the workers that read data
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$SAVE_SECONDS      # torchrun's own is 30 s; a torch that does not know it keeps to that

# torchrun ends with 1 whatever it was stopped by. Here: 143 after SIGTERM and 130 after Ctrl-C, as train.py itself
stopped=0
trap 'stopped=143; kill -TERM "$torchrun"' TERM
trap 'stopped=130; kill -INT "$torchrun"' INT
# no --max-restarts: it would start again what was told to stop
"$PYTHON" -m torch.distributed.run \
    --nnodes="$NODES" --node-rank="$NODE" --nproc-per-node="$DEVICES" \
    --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" \
    train.py "$@" --trainer.num_nodes "$NODES" --trainer.devices "$DEVICES" &
torchrun=$!
while true; do
    status=0
    wait "$torchrun" || status=$?
    kill -0 "$torchrun" 2>/dev/null || break # a signal ends the waiting, not the process
done
((stopped == 0 || status == 0)) || status=$stopped
exit "$status"
