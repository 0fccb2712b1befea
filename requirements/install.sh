#!/bin/sh
# Install the pinned lists into a virtual environment: install.sh VENV cpu|gpu|dev|openvino
# (dev and openvino come on top of one of the others). TORCH_INDEX: an index that has PyTorch's CPU wheels.
set -eu

lists=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
venv=$1
flavour=$2
python=$venv/bin/python
quiet=-q
if [ -t 1 ]; then quiet=; fi

say() { printf '%s\n' "== $*"; }

fail() {
    printf '%s\n' "error: $*" >&2
    exit 1
}

pip_install() {
    # --no-deps: insightface would bring a second onnxruntime and a second OpenCV.
    # --no-compile: compile_all does it on every core, and also where pip would be told not to.
    # shellcheck disable=SC2086  # empty on purpose on a terminal
    "$python" -m pip --disable-pip-version-check install $quiet \
        --no-deps --only-binary :all: --no-compile --root-user-action ignore "$@"
}

install_torch() {
    if [ "$(uname -s)" != Linux ]; then
        pip_install --require-hashes -r "$lists/torch.txt" # has no CUDA there
        return
    fi
    if [ -n "${TORCH_INDEX:-}" ]; then
        pip_install --extra-index-url "$TORCH_INDEX" -r "$lists/torch-cpu.txt" ||
            fail "TORCH_INDEX has no usable torch (see above)"
        return
    fi
    if pip_install -r "$lists/torch-cpu.txt" 2>/dev/null; then return; fi
    say "no CPU build of PyTorch in reach: taking the CUDA build, which runs on a CPU too, about 3 GB"
    say "(to save that, stop and set TORCH_INDEX to PyTorch's CPU wheel index)"
    pip_install --require-hashes -r "$lists/torch.txt"
}

check_consistent() {
    # What is missing or too old for somebody, less what we replace or leave out on purpose.
    problems=$("$python" -m pip --disable-pip-version-check check |
        grep -v -E 'insightface .* requires (onnxruntime|opencv-python), which is not installed' |
        grep -v -E 'openvino .* requires openvino-telemetry, which is not installed' |
        grep -v '^No broken requirements found' || true)
    [ -z "$problems" ] || fail "the lists do not fit together:
$problems"
}

install_command() {
    # .venv/bin/inferd, which works from any folder. Not where this folder stands alone (Dockerfile).
    if [ -f "${lists%/*}/pyproject.toml" ]; then
        "$python" -m pip --disable-pip-version-check install -q \
            --no-deps --no-build-isolation --root-user-action ignore -e "${lists%/*}"
    fi
}

compile_all() {
    # Not compiled, PyTorch and open_clip cost 10 s at every start. Some packages carry templates
    # that are no Python; a failure there is no concern of ours.
    PYTHONDONTWRITEBYTECODE='' "$python" -W ignore -m compileall -q -j 0 \
        "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null 2>&1 || true
    # Our own too, for who starts them where nothing may be written, or is told not to.
    for package in daemon handlers http_shim demos; do
        if [ -d "${lists%/*}/$package" ]; then
            PYTHONDONTWRITEBYTECODE='' "$python" -m compileall -q "${lists%/*}/$package" || true
        fi
    done
}

# setuptools takes it for a variable, after minutes of downloads.
case ${lists%/*} in
*'$'*) fail "the folder's name has a dollar sign in it, which setuptools cannot install from: ${lists%/*}" ;;
esac

case $flavour in
cpu)
    say "installing PyTorch"
    install_torch
    say "installing the rest"
    pip_install --require-hashes -r "$lists/cpu.txt"
    ;;
gpu)
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "the GPU build exists for Linux on x86_64 only"
    say "installing the CUDA build, about 3 GB to download"
    pip_install --require-hashes -r "$lists/gpu.txt"
    ;;
dev)
    say "installing the development tools"
    pip_install --require-hashes -r "$lists/dev.txt"
    ;;
openvino)
    say "installing OpenVINO"
    pip_install --require-hashes -r "$lists/openvino.txt"
    ;;
*)
    fail "usage: install.sh VENV cpu|gpu|dev|openvino"
    ;;
esac
case $flavour in cpu | gpu) install_command ;; esac
check_consistent
say "compiling to bytecode"
compile_all
