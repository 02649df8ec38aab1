#!/bin/sh
# Slurm Epilog: takes the job out of every GPU's file that prolog.sh wrote it into.
# Looks through all files and not at SLURM_JOB_GPUS, which a restarted slurmd may have forgotten.
# Exits 0 whatever happens, since anything else would drain the node.
FOLDER=${MEGAWATCH_SLURM_JOBS:-/run/megawatch/slurm-jobs}
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
set -u
umask 022

say() {
	logger -t megawatch-epilog "$1" 2>/dev/null
	exit 0
}

job=${SLURM_JOB_ID:-}
case $job in '' | *[!0-9]*) say "SLURM_JOB_ID is not a number" ;; esac
[ -d "$FOLDER" ] || exit 0
{ : >>"$FOLDER/.lock"; } 2>/dev/null || say "cannot write in $FOLDER"
(
	flock -w 10 9 || say "no lock on $FOLDER for job $job"
	for file in "$FOLDER"/[0-9]*; do
		grep -qx "$job" "$file" || continue
		# grep ends with 1 where no line is left: the GPU is free, and its file goes.
		if grep -vx "$job" "$file" >"$FOLDER/.new"; then
			mv -f "$FOLDER/.new" "$file"
		else
			rm -f "$file"
		fi
	done
	rm -f "$FOLDER/job.$job" "$FOLDER/.new"
) 9>>"$FOLDER/.lock" 2>/dev/null
exit 0
