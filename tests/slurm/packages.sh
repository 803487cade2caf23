#!/bin/sh
# Debian's packages of Slurm, if they are missing and may be installed. Their services are not started.
set -eu

for program in munged slurmctld slurmd; do
  command -v "$program" >/dev/null || missing=1
done
[ -n "${missing:-}" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "make test-slurm: error: needs root, and munged, slurmctld and slurmd: apt-get install slurm-wlm munge" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
