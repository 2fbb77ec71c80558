#!/usr/bin/env bash
# Measure everything that docs/results.md, the README and the model cards show, then write them.
#
#   bash research/results.sh IMAGES AUDIO [OPTIONS of walloc evaluate]     e.g. --cpu_time on a machine that is not quiet
#
# IMAGES and AUDIO are folders, here Kodak and the validation music of research.corpora.prepare. What was measured before
# is kept in runs/ and not repeated, as long as neither the codec nor the file changed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 2 ]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
images=$1 audio=$2
shift 2
python=${PYTHON:-python}
audio_name="music of marsshooter-data, openclonk-data and pushover-data"

evaluate() { "$python" -W ignore scripts/evaluate_codec.py "$@"; }
evaluate tables --data "$images" --out runs/table1 --store table1 --speed_only "${@}"
evaluate tables --kind audio --data "$audio" --data_name "$audio_name" --files 9 --seconds 15 --out runs/table2 \
    --store table2 --speed_only "${@}"
evaluate tables --kind audio --data "$audio" --data_name "$audio_name" --metrics psnr --no_speed --out runs/table2_all \
    --codecs stereo-5x stereo-5x@linear stereo-5x@step=1.1 stereo-20x stereo-20x@linear stereo-20x@step=1.25 \
    stereo-20x@step=1.5 --store table2_all "${@}"
evaluate curves --data "$images" --metrics psnr --out runs/curves_image --store curves_image "${@}"
evaluate curves --kind audio --data "$audio" --data_name "$audio_name" --files 6 --seconds 15 --metrics psnr \
    --out runs/curves_audio --store curves_audio "${@}"
"$python" -W ignore -m research.make_pictures --images "$images" --audio "$audio"
"$python" -m research.report docs
"$python" -m research.report card model_cards/*/
