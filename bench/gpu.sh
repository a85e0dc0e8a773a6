#!/bin/sh
# Measure caching on a machine with GPUs: a random model of FLUX.1-dev's size, 50 steps at 1024x1024.
#
#   bench/gpu.sh               one GPU, then all of them together where there are several; about an hour each
#   bench/gpu.sh --dry-run     the same code on a tiny model on the CPU, some minutes: whether it would run
#
# Other options go to bench/gpu.py (see --help). Tables are written to bench/results/gpu-<date>-<device>.md after
# every row; a row that fails says why and the others go on.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python}"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

"$PYTHON" bench/gpu.py --write "$@"
case " $* " in *" --dry-run "* | *" --ranks"*) exit 0 ;; esac
count="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
if [ "$count" -gt 1 ]; then
    "$PYTHON" bench/gpu.py --write --ranks "$count" "$@"
fi
