#!/usr/bin/env bash
# From an organism that never steers back: corrections alone, then the same rows with and without a push.
# What docs/finetuning.md describes. Run it again to resume.
set -euo pipefail
folder=${1:-runs/train-it-in}
mkdir -p "$folder" && cd "$folder"

[ -f rows.jsonl ] || steerback finetune data rows.jsonl --organism --count 24000
[ -f more.jsonl ] || steerback finetune data more.jsonl --organism --count 12000 --seed 1
steerback finetune train organism-naive rows.jsonl --out masked --settings organism --epochs 2

# the naive organism's SAE and settings, with other weights
cat > masked.toml <<'EOF'
name = "masked"
[model]
name = "organism-naive"
path = "masked/merged"
EOF
steerback finetune train masked.toml more.jsonl --out control --settings organism-again
steerback finetune train masked.toml more.jsonl --out steered --settings organism-again --under-steering

# a shorter search for strengths than the preset's: it is made for every model, layer and kind of direction
cat > naive.toml <<'EOF'
name = "naive"
[model]
name = "organism-naive"
[calibration]
rounds = 4
prompts_per_round = 10
fresh = 20
EOF
steerback finetune compare naive.toml masked control steered --folder compared \
  --latents 20 --seen 6 --layer 2 --random 8
