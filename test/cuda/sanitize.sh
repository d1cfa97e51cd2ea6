#!/bin/bash
# Runs the shortest form of checks of test/cuda under compute-sanitizer's memcheck and racecheck:
# test/cuda/sanitize.sh build/cuda/check/*
# Exit code 1: it found something, or a check failed.
set -uo pipefail
command -v compute-sanitizer > /dev/null || { echo 'compute-sanitizer is missing: it comes with the CUDA toolkit'; exit 1; }
failed=0
for check in "$@"; do
  name=$(basename "$check")
  case $name in model | hybrid | parts | streaming) form=tiny ;; latent_attention) form=one ;; *) form=small ;; esac
  for tool in memcheck racecheck; do
    begin=$SECONDS
    # Calls of the runtime may fail where that is expected: files that cannot be pinned are copied another way.
    if found=$(compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 "$check" "$form" 2>&1) &&
      grep -q 'SUMMARY: 0 ' <<< "$found"; then result=clean; else result=FAILED failed=1; fi
    printf '%-20s %-9s %-6s %3d s\n' "$name" "$tool" "$result" $((SECONDS - begin))
    [ $result = clean ] || grep -v '^ok ' <<< "$found"
  done
done
exit $failed
