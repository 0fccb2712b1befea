"""What a tower's matrices are turned into, in place, and back: fewer bits, packed for a processor.

Imported when a model loads, as torch is.
"""

import torch
from torch import Tensor, nn

from handlers.clip.layers import Attention, Projection
from handlers.clip.packing import can_pack

Saved = list[tuple[nn.Parameter, Tensor]]
"""Parameters and what they were before."""


def reduce(tower: nn.Module, dtype: torch.dtype) -> Saved:
    """Turn the weights of the products to another precision, in place.

    Returns:
        What `restore` puts back; the memory of the old weights is free once it is dropped.
    """
    saved: Saved = []
    try:
        for module in tower.modules():
            if isinstance(module, Projection | Attention):
                for parameter in module.parameters(recurse=False):
                    fewer = parameter.data.to(dtype)
                    saved.append((parameter, parameter.data))
                    parameter.data = fewer
    except BaseException:
        # Memory ran out half-way, and the tower is to go on as it was.
        restore(saved)
        raise
    return saved


def restore(saved: Saved) -> None:
    """Put the weights back that `reduce` replaced."""
    for parameter, tensor in saved:
        parameter.data = tensor


def pack(tower: nn.Module) -> bool:
    """Pack the matrices of a tower where that works; what is packed already stays so.

    It has to be unpacked before it is moved to another device or its weights are put back.

    Returns:
        Whether all of them are packed now.
    """
    modules = _modules(tower)
    kinds = {matrix.shape: matrix for module in modules for matrix in module.matrices()}
    if not all(can_pack(matrix) for matrix in kinds.values()):
        return False
    try:
        for module in modules:
            module.pack()
    except BaseException:
        # Memory ran out half-way, and the tower is to go on as it was.
        unpack(tower)
        raise
    return bool(modules)


def unpack(tower: nn.Module) -> None:
    """Turn packed matrices back, bit by bit the same; nothing where none is packed."""
    for module in _modules(tower):
        module.unpack()


def _modules(tower: nn.Module) -> list[Projection | Attention]:
    return [each for each in tower.modules() if isinstance(each, Projection | Attention)]
