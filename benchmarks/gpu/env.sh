# Sourced on the bare GPU machine, from a checkout with `.gpu/` (pack.sh): unpack once, then named steps with time limits.
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export G=${G:-$HOME/.longreel-gpu} OUT=${OUT:?names a folder for results}
export PYTHONPATH=$G/site:$G/package:$G/ComfyUI PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
python=${PYTHON:-python3}
clock=$(date +%s)
say() { echo "[$(($(date +%s) - clock)) s] $*"; }
# step NAME SECONDS COMMAND...: all it prints goes to $G/logs/NAME.log, its last $TAIL lines are shown; says its exit status
step() {
  local name=$1 limit=$2 status=0; shift 2; say "== $name (at most $limit s)"
  # SIGINT first: a training run saves what it has
  timeout --signal=INT --kill-after=15 "$limit" "$@" >"$G/logs/$name.log" 2>&1 || status=$?
  say "$name: exit status $status"; tail -n "${TAIL:-12}" "$G/logs/$name.log"
  return "$status"
}
unpack() {
  mkdir -p "$OUT" "$G"/{site,package,ComfyUI/models,run,logs}
  [[ -e $G/unpacked ]] || {
    xz -dc "$checkout/.gpu/site.tar.xz" | tar x -C "$G/site" &
    xz -dc "$checkout/.gpu/comfyui.tar.xz" | tar x -C "$G/ComfyUI"
    wait; touch "$G/unpacked"
  }
  ln -sfn "$checkout" "$G/package/longreel"; cd "$G/run"; say unpacked
  ! command -v nvidia-smi >/dev/null || nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
}
