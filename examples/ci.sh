#!/usr/bin/env bash
# What a CI job of yours may look like: a tiny network learns ten hand-written tasks with a built-in
# strategy and with one of your own, and the figures are read from JSON. Half a minute on one core.
# Any command that fails ends the script with that command's exit code.
#
#     bash examples/ci.sh [HOME]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -gt 0 ]; then
    home=$1
else
    home=$(mktemp -d)
    trap 'rm -rf "$home"' EXIT
fi
sandbox() { dsa-sandbox "$@" --home "$home" --quiet </dev/null; }
# prints the field of the object on stdin that the expression names, `value` being the object
field() { python3 -c "import json, sys; value = json.load(sys.stdin); print($1)"; }

dsa-sandbox --version

tiny=(
    --set model.num_layers=2 --set model.width=32 --set model.num_heads=4 --set model.ffn_width=64
    --set train.steps=20 --set data.num_stories=500 --set data.num_validation=20
)
base=$(sandbox pretrain --arch dsa --json "${tiny[@]}" | field 'value["run"]')

teach=(
    finetune "$base" --tasks "$here/stream.jsonl" --json
    --set finetune.max_steps=4 --set finetune.batch=4 --set eval.num_heldout=8
    --set eval.stories=0 --set eval.recovery_tasks=0
)
sgd=$(sandbox "${teach[@]}" --strategy sgd | field 'value["run"]')
anchor=$(sandbox "${teach[@]}" --include "$here/anchor.py" --strategy anchor \
    --set anchor.strength=0.1 | field 'value["run"]')

sandbox eval "$sgd" "$anchor" --json | python3 -c '
import json, math, sys

for name, figures in json.load(sys.stdin)["runs"].items():
    forgetting = figures["heldout_dnll"]
    if not math.isfinite(forgetting):
        sys.exit(f"{name}: held-out dNLL is not a finite number")
    print(f"{name}: held-out dNLL {forgetting:+.4f} nats per token")
'
sandbox plot "$sgd" "$anchor" --kind forgetting
