#!/bin/bash

# Parameters
#SBATCH --array=0-79%4
#SBATCH --constraint=v100
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=v100:8
#SBATCH --job-name=imagenet
#SBATCH --mem=400G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/shared/results/imagenet/jobs/000/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
export PYTHONPATH=/shared/results/imagenet/code/0123456789ab${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS=1
set +e; trap : TERM USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/results/imagenet/jobs/000/%A_%a_%t_log.out --cpus-per-task=8 --export=ALL --kill-on-bad-exit=1 --open-mode=append /opt/python/bin/python -u -m submitit.core._submit /shared/results/imagenet/jobs/000


# teardown
/opt/python/bin/python -m cser_bench.slurm.requeue /shared/results/imagenet/campaign.json 0 3 $?
