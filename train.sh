#!/bin/sh
# Sets up the environment, then trains. Without arguments: yolox-nano on the built-in synthetic set,
# some minutes on a CPU. Arguments go to train.py:
#   sh train.sh -d voc -v yolox-s --root /data
# With several GPUs one process is started on each (CUDA_VISIBLE_DEVICES chooses among them).

cd "$(dirname "$0")" || exit 2
case " $* " in
*" -h "* | *" --help "*) # nothing is installed for a look at the flags
    [ -x "${VIRTUAL_ENV:-.venv}/bin/python" ] && exec "${VIRTUAL_ENV:-.venv}/bin/python" train.py --help
    sed -n '2,5s/^# \{0,1\}//p' train.sh
    exit 0
    ;;
esac
. ./setup.sh
[ $# -gt 0 ] || set -- -d synthetic -v yolox-nano

GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
if [ "$GPUS" -gt 1 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    GPUS=$(printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c .)
fi
if [ "$GPUS" -gt 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" train.py "$@"
fi
exec "$PYTHON" train.py "$@"
