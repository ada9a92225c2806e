#!/usr/bin/env bash
# Pack what a bare GPU machine without a network needs to train and judge the miniature: an ignored folder `.gpu/` in a
# checkout, which travels there beside the checkout's own files (64 MiB in all).
#   benchmarks/gpu/pack.sh COMFYUI [CHECKOUT]
# In an environment that runs `python -m longreel.training`, with pip for python3.
# COMFYUI: a ComfyUI folder (scripts/comfy.py makes one in .comfy); CHECKOUT: where `.gpu/` goes, default this one. The
# machine is expected to have Python 3.12 with PyTorch, Triton, transformers, accelerate, aiohttp, einops and pytest, and
# nothing of ComfyUI's other requirements. There: `bash benchmarks/gpu/train_miniature.sh`, with OUT naming a folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
comfy=$(cd "$1" && pwd); checkout=$(cd "${2:-$here/../..}" && pwd); out=$checkout/.gpu; work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/whl" "$work/site"
exclude=$(git -C "$checkout" rev-parse --git-path info/exclude); cd "$checkout"
grep -qx '/.gpu/' "$exclude" 2>/dev/null || echo '/.gpu/' >>"$exclude"
flags=(); for p in 2_28 2_27 2_24 2_17 2_34 2_5; do flags+=(--platform "manylinux_${p}_x86_64"); done
version() { sed -n "s/^$1==\([0-9.]*\).*/\1/p" "$comfy/requirements.txt"; }
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp "${flags[@]}" \
  --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$work/whl" \
  "comfy-kitchen==$(version comfy-kitchen)" "comfy-aimdo==$(version comfy-aimdo)" torchsde trampoline open_clip_torch ftfy wcwidth
for w in "$work"/whl/*.whl; do python3 -m zipfile -e "$w" "$work/site"; done
# its compiled kernels are for quantised and full-size models; without them it takes Triton's or torch's
rm -rf "$work"/site/comfy_kitchen/backends/*/_C*.so "$work"/site/*.data
# a stand-in reads videos: PyAV's libraries alone would fill what may travel
rm -rf "$work"/site/av*; mkdir "$work/site/av"; cp "$here/av_by_cv2.py" "$work/site/av/__init__.py"
tar cf - -C "$work/site" . | xz -3 >"$out/site.tar.xz"
# `models` at the top only: comfy/ldm/models is code
tar cf - -C "$comfy" --exclude=./models --exclude=./tests --exclude=./tests-unit --exclude=./blueprints --exclude=./.git --exclude=./web \
  --exclude='__pycache__' . | xz -3 >"$out/comfyui.tar.xz"
# the clips that the cast LoRA learns from are the same whatever the models
[[ -d $out/casts ]] || (cd "$work" && python -m longreel.training cast-data --world 40 --folder "$out/casts" --frames 45)
du -sm "$out"
