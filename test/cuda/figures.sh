#!/bin/bash
# Runs checks of test/cuda, each of which compares with double precision and then measures, and ends with the figures that all
# of it is judged by: test/cuda/figures.sh build/cuda/check/*
# Exit code 1: a comparison failed. A figure that was not reached is marked and fails nothing.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || { echo 'no NVIDIA driver is here'; exit 1; }
results=()
failed=0
for check in "$@"; do
  name=$(basename "$check")
  printf '\n== %s\n' "$name"
  begin=$SECONDS
  if "$check" 2>&1 | tee -a "$log"; then result=ok; else result=FAILED failed=1; fi
  results+=("$(printf '%-20s %-6s %3d s' "$name" "$result" $((SECONDS - begin)))")
done
printf '\n== checks\n'
printf '%s\n' "${results[@]}"
printf '\n== figures, with what is asked for on an H200\n'
sed -n 's/^figure //p' "$log"
exit $failed
