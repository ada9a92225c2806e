#!/usr/bin/env bash
# On the bare GPU machine: train the counter where none is shipped, then judge long takes of two sets of weights.
#   OUT=folder benchmarks/gpu/judge_long.sh NEW_WEIGHTS [OLD_WEIGHTS]
set -uo pipefail
. "$(cd "$(dirname "$0")" && pwd)/env.sh"
new=$(realpath "$1"); old=${2:+$(realpath "$2")}
[[ -e $G/unpacked ]] || unpack
file=probe/longreel-miniature-counter.safetensors
rm -rf "$G/judged"; mkdir -p "$G/judged" "$G/logs"; cp -r "$new" "$G/judged/new"; [[ -z $old ]] || cp -r "$old" "$G/judged/old"
cd "$G/run"
[[ -e $G/judged/new/$file ]] || TAIL=9 step counter 110 "$python" -m longreel.training counter --folder "$G/counter" \
  --weights "$G/judged/new" --workers 10 --frames 8000 --clips 200 --steps 2000
cp "$G/judged/new/$file" "$OUT/"
for which in old new; do
  [[ -e $G/judged/$which ]] || continue
  cp "$G/judged/new/$file" "$G/judged/$which/probe/"
  TAIL=30 step "long-$which" "${JUDGE_S:-80}" "$python" -m longreel.training evaluate --long changes vae take cuts \
    --takes "${TAKES:-24}" --seconds 60 --weights "$G/judged/$which" --sheets "$G/judged/sheets-$which" &
done
wait
tar czf "$OUT/judged.tgz" -C "$G" logs; tar cf "$OUT/judged-sheets.tar" -C "$G/judged" $(cd "$G/judged" && ls -d sheets-* 2>/dev/null)
say end
