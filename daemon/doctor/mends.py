"""Mends that more than one check proposes."""

from daemon.program import program

MEMORY = (
    "free the GPU (nvidia-smi says who has it), or set INFERD_CLIP__BATCH_SIZE to half,"
    " or INFERD_DEVICE=cpu; then restart the daemon"
)
GPU = (
    "install the CUDA builds (GPU=1 make setup) and NVIDIA's driver (nvidia-smi must work),"
    " or set INFERD_DEVICE=cpu"
)
START = f"start it: {program()}"
