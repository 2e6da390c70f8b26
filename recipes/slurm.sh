#!/usr/bin/env bash
# A run on several nodes of a Slurm cluster: sbatch --nodes 2 recipes/slurm.sh CONFIG [key=value ...]
# LAUNCH=recipes/accelerate/fsdp2.yaml takes another accelerate config, STAGE=dpo runs one stage by itself.
#SBATCH --job-name=rlhf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=%x-%j.log
# Five minutes before its time is up, the stage saves a checkpoint and ends; the job that follows continues from it.
set -euo pipefail

launch=${LAUNCH:-recipes/accelerate/ddp.yaml}
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
file=$PWD/.rlhf-$SLURM_JOB_ID.yaml # in the folder of the job, which the nodes share
{
  grep -vE '^(num_machines|num_processes|machine_rank|main_process_ip|main_process_port|gpu_ids):' "$launch"
  echo "num_machines: $SLURM_NNODES"
  echo "num_processes: $((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-8}))"
  echo "main_process_ip: $first"
  echo "main_process_port: $((20000 + SLURM_JOB_ID % 30000))"
} >"$file"
trap 'rm -f "$file"' EXIT

export FILE=$file
if [[ -n ${STAGE:-} ]]; then
  config=$1
  shift
  # shellcheck disable=SC2016 # each node has its own number
  srun --kill-on-bad-exit=0 bash -c 'exec accelerate launch --config_file "$FILE" --machine_rank "$SLURM_NODEID" \
    -m rlhf.pipeline.stage "$@"' node "$config" "$STAGE" "$@"
else
  # shellcheck disable=SC2016
  srun --kill-on-bad-exit=0 bash -c 'exec rlhf run "$@" --accelerate "$FILE" --node "$SLURM_NODEID"' node "$@"
fi
