#!/bin/bash
# Runs the shortest form of checks of test/cuda under compute-sanitizer's memcheck and racecheck:
# test/cuda/sanitize.sh build/cuda/check/*
# Exit code 1: it found something, or a check failed.
set -uo pipefail
failed=0
for check in "$@"; do
  name=$(basename "$check")
  case $name in model | hybrid | parts | streaming) form=tiny ;; latent_attention) form=one ;; *) form=small ;; esac
  for tool in memcheck racecheck; do
    begin=$SECONDS
    found=$(compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 --print-limit 8 "$check" "$form" 2>&1) && result=clean || result=FAILED
    printf '%-20s %-9s %-6s %3d s\n' "$name" "$tool" "$result" $((SECONDS - begin))
    [ $result = clean ] || { failed=1; grep -v '^ok ' <<< "$found"; }
  done
done
exit $failed
