#!/bin/sh
# Measure caching on a machine with GPUs: a random model of FLUX.1-dev's size, 50 steps at 1024x1024.
#
#   bench/gpu.sh               one GPU, then all of them together where there are several; about 20 minutes
#   bench/gpu.sh --dry-run     the same code on a tiny model on the CPU, a minute: whether it would run
#
# Other options go to bench/gpu.py (see --help). Tables are written to bench/results/gpu-<date>-<device>.md.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python}"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

"$PYTHON" bench/gpu.py --write "$@"
case " $* " in *" --dry-run "*) exit 0 ;; esac
count="$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')"
if [ "$count" -gt 1 ]; then
    "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$count" bench/gpu.py --write "$@"
fi
