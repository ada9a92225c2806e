#!/usr/bin/env bash
# On the bare GPU machine: train the miniature's three adapters, as shipped, on for the base in the checkout: beside one
# another on the one GPU, each until the time is over.
#   OUT=folder benchmarks/gpu/train_adapters.sh [SECONDS]
# SECONDS: of all this, from now on, 215 unless given. JUDGE_S: of judges afterwards, none unless given.
set -uo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"
end=$(($(date +%s) + ${1:-215}))
unpack
weights=$checkout/miniature/weights; loras=$weights/loras; folder=$G/adapters; mkdir -p "$folder" "$OUT"
left() { echo $((end - $(date +%s))); }
t() { "$python" -m longreel.training "$@" --threads 4; }
# until the end: less the time that imports, data and the file take
memory() {
  t memory-lora --folder "$folder/memory" --steps 20000 --batch 48 --lr 5e-4 --muon-lr 1e-3 \
    --start-from "$loras/longreel-miniature-memory.safetensors" --seconds $(($(left) - 60))
}
weaver() {
  for part in 0 1 2 3 4; do t weaver-data --folder "$folder/scenes" --scenes 200 --part $part 5 & done; wait
  t weaver-lora --data "$folder/scenes" --folder "$folder/weaver" --first-steps 40 --steps 20000 --batch 16 --at-once 16 \
    --modes 0.05 0.2 0.5 0.25 --negative 0.1 --ranked 0.9 --rank 32 --subject 9 --reading 0.5 --warmup 30 --lr 5e-4 \
    --muon-lr 1e-3 --precision bf16 --base-dtype float32 --sample-every 0 --save-every 0 \
    --start-from "$loras/longreel-miniature-filmweaver.safetensors" --seconds $(($(left) - 38))
}
cast() {
  t cast-lora --data "$checkout/.gpu/casts" --folder "$folder/cast" --steps 20000 --batch 16 --at-once 16 --rank 32 \
    --reading 0.5 --precision bf16 --frames 45 --dropout 0.05 --recast 360 --lr 5e-4 --muon-lr 1e-3 --sample-every 0 \
    --save-every 0 --base-dtype float32 --start-from "$loras/longreel-miniature-cast.safetensors" \
    --seconds $(($(left) - 85))
}
bring() {
  rm -rf "$G/brought"; mkdir -p "$G/brought/loras"
  cp "$loras/longreel-miniature-memory.safetensors" "$G/brought/loras"
  cp "$folder/weaver/weaver.safetensors" "$G/brought/loras/longreel-miniature-filmweaver.safetensors"
  cp "$folder/cast/lora.safetensors" "$G/brought/loras/longreel-miniature-cast.safetensors"
  cp "$G"/logs/*.log "$folder"/*/*.jsonl "$G/brought"
  tar czf "$OUT/adapters.tgz" -C "$G/brought" .
} 2>/dev/null
export -f left t memory weaver cast; export python end folder checkout weights loras
for part in memory weaver cast; do
  # a stopped run writes what it has
  timeout --signal=INT --kill-after=8 "$(left)" bash -c "$part" >"$G/logs/$part.log" 2>&1 &
done
wait
for part in memory weaver cast; do say "== $part"; tail -n 3 "$G/logs/$part.log" | cut -c 1-400; done
bring
if [[ -n ${JUDGE_S:-} ]]; then
  judge() { timeout --kill-after=5 "$JUDGE_S" "$python" -m longreel.training "$@" >"$G/logs/$1.log" 2>&1 & }
  judge memory-judge --seeds 0 --stories 50 --threads 2
  judge weaver-judge --lora "$folder/weaver/weaver.safetensors" --steps 10 --folder "$folder/judged" --seeds 0 --threads 4
  judge cast-judge --lora "$folder/cast/lora.safetensors" --casts 100 --steps 4 --renoise --latent-frames 12 --threads 4
  wait
  for part in memory-judge weaver-judge cast-judge; do say "== $part"; tail -n 12 "$G/logs/$part.log"; done
  bring
fi
ls -la "$OUT"; say end
