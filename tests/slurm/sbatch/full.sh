#!/bin/bash

# Parameters
#SBATCH --account=a1
#SBATCH --array=0-79%2
#SBATCH --constraint=v100
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --gres=gpu:v100:4
#SBATCH --job-name=imagenet
#SBATCH --mem=512M
#SBATCH --nice=5
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/shared/results/imagenet/jobs/000/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=low
#SBATCH --requeue
#SBATCH --signal=USR2@30
#SBATCH --time=10

# setup
module load cuda
export NCCL_DEBUG=WARN
export PYTHONPATH=/shared/results/imagenet/code/0123456789ab${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export OMP_NUM_THREADS=1
export GLOO_SOCKET_IFNAME=ib0
export NCCL_SOCKET_IFNAME=ib0
set +e; trap : TERM USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/results/imagenet/jobs/000/%A_%a_%t_log.out --cpus-per-task=8 --export=ALL --kill-on-bad-exit=1 --open-mode=append apptainer exec --nv /shared/torch.sif python3 -u -m submitit.core._submit /shared/results/imagenet/jobs/000


# teardown
/opt/python/bin/python -m cser_bench.slurm.requeue /shared/results/imagenet/campaign.json 0 5 $?
