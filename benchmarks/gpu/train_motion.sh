#!/usr/bin/env bash
# On the bare GPU machine: the miniature's motion adapter from nothing but its weights: clips, adapter, measures.
#   OUT=folder benchmarks/gpu/train_motion.sh [STEPS] [CLIPS]
# About 40 s for 400 clips, 70 ms a step, 20 s of measures on one H100. What is done comes back even if a later step fails.
set -uo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"
steps=${1:-900}; clips=${2:-400}; workers=${WORKERS:-14}
unpack
weights=${WEIGHTS:-$checkout/miniature/weights}
longreel=("$python" "$checkout/benchmarks/gpu/command.py" "$weights")
TAIL=3 step held 60 "${longreel[@]}" motion-data --world 32 --frames 49 --held-out --measured --workers "$workers" --folder "$G/held" || exit 1
TAIL=3 step clips 90 "${longreel[@]}" motion-data --world "$clips" --frames 49 --workers "$workers" --folder "$G/clips" || exit 1
run() { # NAME OPTIONS...: one adapter
  local name=$1; shift
  TAIL=4 step "$name" "${TRAIN_S:-100}" "${longreel[@]}" motion --data "$G/clips" --measure "$G/held" --steps "$steps" \
    --batch 32 --micro-batch 32 --folder "$G/$name" "$@"
  cp "$G/$name/motion.safetensors" "$OUT/$name.safetensors" 2>/dev/null; cp "$G/$name/loss.png" "$OUT/$name.png" 2>/dev/null
}
run single
[[ -z ${COMPARE:-} ]] || { run separate --head separate; run without --lambda-motion 0; }
adapters=(); for name in single separate without; do
  [[ ! -f $G/$name/motion.safetensors ]] || adapters+=(--adapter "$G/$name/motion.safetensors")
done
TAIL=40 step judge "${JUDGE_S:-60}" "${longreel[@]}" motion-judge --data "$G/held" "${adapters[@]}" --films "${FILMS:-24}" \
  --fallbacks --json "$OUT/motion.json"
cp "$G"/logs/*.log "$OUT"; ls -la "$OUT"; say end
