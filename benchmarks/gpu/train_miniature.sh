#!/usr/bin/env bash
# On the bare GPU machine: train the miniature within a budget, judge it, bring back weights, curves and pictures.
#   OUT=folder benchmarks/gpu/train_miniature.sh [MINUTES] [OPTIONS OF `longreel.training miniature`...]
# MINUTES: of training (6 unless given). What is done by the end of a step comes back even if a later one fails.
set -uo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"
minutes=${1:-6}; [[ $# -eq 0 ]] || shift
unpack
seconds=$(awk "BEGIN { print int(60 * $minutes + 45) }")
TAIL=8 step imports 90 "$python" "$checkout/benchmarks/gpu/check.py" || exit 1
cp -r "$checkout/miniature/weights" "$G/weights"; cp -r "$G/weights" "$G/before"
# the judge's counter, where none is shipped, learns beside the VAE, which leaves CPU cores idle
[[ -e $G/weights/probe/longreel-miniature-counter.safetensors ]] || {
  nice -n 10 timeout "${COUNTER_S:-240}" "$python" -m longreel.training counter --folder "$G/counter" --weights "$G/weights" --workers 10 \
    --threads 2 >"$G/logs/counter.log" 2>&1 &
  counter=$!
}
TAIL=25 step train "$seconds" "$python" -m longreel.training miniature --minutes "$minutes" --folder "$G/training" \
  --weights "$G/weights" --curves "$OUT/curves.png" "$@"
# at most 16 MiB a file and eight files: models in two archives, logs and curves in a third
bring() {
  tar cf "$OUT/dit.tar" -C "$G" weights/diffusion_models weights/text_encoders
  tar cf "$OUT/vae.tar" -C "$G" weights/vae weights/probe
  rm -rf "$G/told"; mkdir -p "$G/told"; cp "$G"/logs/*.log "$G/told"
  cp "$G"/training/*.jsonl "$G"/training/*.json "$G/told" 2>/dev/null
  tar czf "$OUT/logs.tgz" -C "$G/told" .
}
bring
sheets=$G/sheets; mkdir -p "$sheets"
[[ -z ${counter:-} ]] || { wait "$counter"; tail -n 6 "$G/logs/counter.log"; }
cp "$G"/weights/probe/longreel-miniature-counter.safetensors "$G/before/probe/"
# what was there before, by the same judge, beside it
TAIL=30 step before "${JUDGE_S:-60}" "$python" -m longreel.training evaluate --long changes vae --takes 24 \
  --seconds 60 --weights "$G/before" --sheets "$G/sheets_before" &
before=$!
TAIL=40 step judge "${JUDGE_S:-60}" "$python" -m longreel.training evaluate --long changes cuts --takes "${TAKES:-50}" \
  --seconds 60 --weights "$G/weights" --sheets "$sheets" --clips 40 --prompts 0
wait "$before"
TAIL=4 step sheets "${SHEETS_S:-40}" "$python" "$checkout/benchmarks/gpu/sheets.py" "$G/weights" "$sheets"
tar cf "$OUT/sheets.tar" -C "$sheets" .
bring; ls -la "$OUT"; say end
