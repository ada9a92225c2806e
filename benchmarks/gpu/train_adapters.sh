#!/usr/bin/env bash
# On the bare GPU machine: train the miniature's three adapters on the base in the checkout, beside one another on the one
# GPU, each within a time budget; what time is left goes to their judges.
#   OUT=folder benchmarks/gpu/train_adapters.sh [SECONDS]
# SECONDS: of each training, 110 unless given. JUDGE_S: of all judges together, 60.
set -uo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"
seconds=${1:-110}; judges=${JUDGE_S:-60}
unpack
weights=$checkout/miniature/weights; folder=$G/adapters; mkdir -p "$folder" "$OUT"
train() { "$python" -m longreel.training "$@" --seconds "$seconds" --threads 4; }
memory() { train memory-lora --folder "$folder/memory" --steps 4000 --batch 48; }
weaver() {
  "$python" -m longreel.training weaver-data --folder "$folder/scenes" --scenes 240 --threads 4 &&
    train weaver-lora --data "$folder/scenes" --folder "$folder/weaver" --first-steps 80 --steps 6000 --batch 16 \
      --modes 0.05 0.2 0.5 0.25 --negative 0.1 --ranked 0.9 --rank 32 --subject 9 --reading 0.5 --warmup 30 --at-once 16 \
      --base-dtype float32 --precision bf16 --sample-every 0 --save-every 0
}
cast() {
  train cast-lora --data "$checkout/.gpu/casts" --folder "$folder/cast" --steps 6000 --batch 16 --at-once 16 --rank 32 \
    --reading 0.5 --base-dtype float32 --precision bf16 --frames 45 --dropout 0.05 --recast 600 --sample-every 0 --save-every 0
}
bring() {
  rm -rf "$G/brought"; mkdir -p "$G/brought/loras"
  cp "$weights/loras/longreel-miniature-memory.safetensors" "$G/brought/loras" 2>/dev/null
  cp "$folder/weaver/weaver.safetensors" "$G/brought/loras/longreel-miniature-filmweaver.safetensors" 2>/dev/null
  cp "$folder/cast/lora.safetensors" "$G/brought/loras/longreel-miniature-cast.safetensors" 2>/dev/null
  cp "$G"/logs/*.log "$folder"/*/*.jsonl "$G/brought" 2>/dev/null
  tar czf "$OUT/adapters.tgz" -C "$G/brought" .
}
limit=$((seconds + 75))
export -f train memory weaver cast; export python seconds folder checkout weights
for part in memory weaver cast; do
  timeout --signal=INT --kill-after=10 "$limit" bash -c "$part" >"$G/logs/$part.log" 2>&1 &
done
wait
for part in memory weaver cast; do say "== $part"; tail -n 3 "$G/logs/$part.log"; done
bring
judge() { timeout --kill-after=5 "$judges" "$python" -m longreel.training "$@" >"$G/logs/$1.log" 2>&1 & }
judge memory-judge --seeds 0 --stories 50 --threads 2
judge weaver-judge --lora "$folder/weaver/weaver.safetensors" --steps 10 --folder "$folder/judged" --seeds 0 --threads 4
judge cast-judge --lora "$folder/cast/lora.safetensors" --casts 100 --steps 4 --renoise --latent-frames 12 --threads 4
wait
for part in memory-judge weaver-judge cast-judge; do say "== $part"; tail -n 12 "$G/logs/$part.log"; done
bring; ls -la "$OUT"; say end
