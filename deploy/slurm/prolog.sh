#!/bin/sh
# Slurm Prolog: notes which job got which GPUs of this node, where dcgm-exporter
# (--hpc-job-mapping-dir) and the Megawatch agent ([agent] slurm_jobs) read it.
# In FOLDER: a file per GPU index, a line per job; and job.ID with what is known of the job.
# Exits 0 whatever happens, since anything else would drain the node.
FOLDER=${MEGAWATCH_SLURM_JOBS:-/run/megawatch/slurm-jobs}
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
set -fu
umask 022

say() {
	logger -t megawatch-prolog "$1" 2>/dev/null
	exit 0
}

job=${SLURM_JOB_ID:-}
gpus=${SLURM_JOB_GPUS:-}
[ -n "$gpus" ] || exit 0
case $job in '' | *[!0-9]*) say "SLURM_JOB_ID is not a number" ;; esac
case $gpus in *[!0-9,]*) say "SLURM_JOB_GPUS of job $job is not a list of indices" ;; esac
instances=
case ${CUDA_VISIBLE_DEVICES:-} in
*MIG-*)
	# Slurm counts MIG instances, not GPUs: its indices would name the wrong ones. The agent asks
	# the driver of which GPUs these are.
	instances=$CUDA_VISIBLE_DEVICES gpus=
	case $instances in *[!0-9A-Za-z,/-]*) say "the MIG instances of job $job are no list" ;; esac
	;;
esac

mkdir -p "$FOLDER" 2>/dev/null || say "cannot make $FOLDER"
{ : >>"$FOLDER/.lock"; } 2>/dev/null || say "cannot write in $FOLDER"
(
	# Prologs and epilogs of other jobs run at the same time; the kernel lets go of a dead one's lock.
	flock -w 10 9 || say "no lock on $FOLDER for job $job"
	{
		printf 'account=%s\n' "${SLURM_JOB_ACCOUNT:-}"
		printf 'user=%s\n' "${SLURM_JOB_USER:-}"
		printf 'array=%s\n' "${SLURM_ARRAY_JOB_ID:+$SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}"
		printf 'mig=%s\n' "$instances"
	} >"$FOLDER/.new" && mv -f "$FOLDER/.new" "$FOLDER/job.$job"
	IFS=,
	for gpu in $gpus; do
		[ -n "$gpu" ] || continue
		{
			grep -vx "$job" "$FOLDER/$gpu"
			printf '%s\n' "$job"
		} >"$FOLDER/.new" 2>/dev/null && mv -f "$FOLDER/.new" "$FOLDER/$gpu"
	done
) 9>>"$FOLDER/.lock" 2>/dev/null
exit 0
