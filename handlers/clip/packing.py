"""Packed matrices: weights in the order in which the processor's bf16 products read them.

A plain matrix is brought into that order for each product anew: a tenth of a pass of eight pictures
on a core with AVX512_BF16, a third of a pass of one. The kernels stay the same, and so do their
results, to the last bit.

The operators are those that torch.compile emits for a frozen model on a CPU, without the seconds
that it takes to compile (torch/_inductor/fx_passes/mkldnn_fusion.py). torch promises nothing of
them: they are tried before anything relies on them, and without them all runs as it is.

Imported when a model loads, as torch is.
"""

import logging

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)

TRIED_ROWS = 64
"""Of a product that is tried: enough for the kernels of full passes."""
LEAST_COSINE = 0.9999
"""Of what a packed matrix gives to what the plain one does; other processors may sum otherwise."""


def packed(matrix: Tensor) -> Tensor:
    """Return bf16 [out, in] on the CPU packed: for `product` alone, and `to_dense` gives it back.

    Raises:
        RuntimeError: torch's own; NotImplementedError is one.
        AttributeError: this torch has no such operator.
    """
    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous())  # noqa: SLF001
    return reordered


def product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return bf16 [..., out] of [..., in], a packed matrix and a bias."""
    linear = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
    found: Tensor = linear(x, matrix, bias, "none", [], "")
    return found


def can_pack(matrix: Tensor) -> bool:
    """Return whether packing a matrix of this kind and shape works here, by trying it."""
    if matrix.dtype != torch.bfloat16 or matrix.device.type != "cpu":
        return False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(TRIED_ROWS, matrix.shape[1], generator=generator).to(matrix.dtype)
    plain = functional.linear(rows, matrix).flatten().double()
    try:
        found = product(rows, packed(matrix), None).flatten().double()
    except (RuntimeError, AttributeError, TypeError) as error:
        log.info("weights stay unpacked: %s", str(error).partition("\n")[0])
        return False
    # Matrices of zeros are none to tell anything by, and are given back as they came.
    cosine = float(plain @ found / (plain.norm() * found.norm()).clamp_min(1e-30))
    is_same = torch.equal(plain, found) or cosine >= LEAST_COSINE
    if not is_same:
        log.warning("weights stay unpacked: packed ones give a cosine of %.6f", cosine)
    return is_same
