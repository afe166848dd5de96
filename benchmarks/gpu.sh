#!/usr/bin/env bash
# All checks that need a GPU, in less than ten minutes on one: the tests that are marked so, decoding
# and prompts beside the bandwidth, and a fine-tuning whose progress line shows its MFU. Where there
# is none, each part says that it is skipped.
#
#     benchmarks/gpu.sh [PYTHON]    the Python of an environment with all packages and their tests
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
failed=0

echo "## Tests"
"$python" -m pytest -q -m gpu packages/truthgpt-plugin-quantize/tests || failed=1

echo
echo "## Decoding and prompts"
timeout 300 "$python" benchmarks/gpu.py || failed=1

echo
echo "## Training"
if "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    folder=$(mktemp -d)
    timeout 180 "$(dirname "$python")/truthgpt" train examples/train.yaml \
        --set output_dir="$folder/train" --set training.train_batch_size=32 \
        --set training.max_steps=40 --set training.eval_steps=40 2>&1 | tail -20 || failed=1
    rm -rf "$folder"
else
    echo "skipped: MFU of training (there is no GPU)"
fi
exit $failed
