#!/usr/bin/env bash
# Measure everything that docs/results.md, the README and the model cards show, then write them.
#
#   bash research/results.sh IMAGES UNSEEN AUDIO [OPTIONS of walloc evaluate]   e.g. --cpu-time on a machine not quiet
#
# Folders: here Kodak, on which decoders were chosen; Caltech-101, on which nothing was; the validation music of
# research.corpora.prepare. What was measured before is kept in runs/ and not repeated, as long as neither the codec nor
# the file changed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 3 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
images=$1 unseen=$2 audio=$3
shift 3
python=${PYTHON:-python}
audio_name="music of marsshooter-data, openclonk-data and pushover-data"

evaluate() { "$python" -W ignore scripts/evaluate_codec.py "$@"; }
evaluate tables --data "$images" --out runs/table1 --store table1 --full --speed-only \
    --codecs rgb-4x rgb-4x@refine=10 rgb-4x@linear rgb-4x-klt rgb-4x-klt@linear jpeg@like=rgb-4x webp@like=rgb-4x \
    rgb-f16c48 rgb-f16c48@linear webp@like=rgb-f16c48 rgb-f16c12 rgb-f16c12@linear webp@like=rgb-f16c12 \
    rgb-f16c192 rgb-f16c192@linear webp@like=rgb-f16c192 \
    rgb-16x rgb-16x@step=1.1 rgb-16x@refine=10 rgb-16x@step=1.2,refine=10 rgb-16x@linear rgb-16x-klt rgb-16x-klt@linear \
    jpeg@like=rgb-16x webp@like=rgb-16x jpeg@quality=50 webp@quality=50 avif@quality=50 jxl@quality=50 \
    resize@factor=2 resize@factor=4 resize@factor=8 original-4x original-16x cheng2020 sd3-vae "${@}"
evaluate tables --data "$unseen" --files 94 --metrics psnr ssim --no-speed --out runs/table1_unseen \
    --codecs rgb-4x rgb-4x@linear rgb-4x-klt resize@factor=2 \
    rgb-f16c48 rgb-f16c48@linear rgb-f16c12 rgb-f16c12@linear rgb-f16c192 rgb-f16c192@linear \
    rgb-16x rgb-16x@linear rgb-16x-klt rgb-16x-klt@linear \
    resize@factor=4 webp@like=rgb-4x webp@like=rgb-16x --store table1_unseen "${@}"
evaluate tables --kind audio --data "$audio" --data-name "$audio_name" --files 9 --seconds 15 --full --out runs/table2 \
    --store table2 --speed-only "${@}"
evaluate tables --kind audio --data "$audio" --data-name "$audio_name" --metrics psnr --no-speed --out runs/table2_all \
    --codecs stereo-5x stereo-5x@linear stereo-5x@step=1.1 stereo-20x stereo-20x@linear stereo-20x@step=1.25 \
    stereo-20x@step=1.5 --store table2_all "${@}"
evaluate tables --kind audio --data "$audio" --data-name "$audio_name" --files 5 --seconds 2 --metrics psnr cdpam_db \
    --no-speed --codecs stereo-5x stereo-20x mp3@quality=0.9 opus@quality=0.9 \
    --out runs/table2_cdpam --store table2_cdpam "${@}"
evaluate curves --data "$images" --metrics psnr --out runs/curves_image --store curves_image "${@}"
evaluate curves --kind audio --data "$audio" --data-name "$audio_name" --files 6 --seconds 15 --metrics psnr \
    --out runs/curves_audio --store curves_audio "${@}"
"$python" -W ignore -m research.make_pictures --images "$images" --audio "$audio"
"$python" -m research.report docs
"$python" -m research.report card model_cards/*/
