"""CLIP's transformer in our own layers over open_clip's weights, for forward passes only.

open_clip's attention is torch's nn.MultiheadAttention: once off its narrow fast path (any other
precision than fp32 does it) each token gets a copy of the weights, 1.3 s a pass on two cores. Here
tokens stay contiguous [n, tokens, width], queries, keys and values are one product, and nothing is
calculated that no result needs: behind the last block's keys only one token a picture is read.

Precision is that of the weights of the products. The residual stream and the norms stay in fp32
always: outlier channels are what half the bits lose first. Names of parameters are open_clip's.

Imported when a model loads, as torch is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from handlers.clip.packing import packed, product


class Projection(nn.Module):
    """A product with a weight matrix, in the precision of that matrix."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self._shape = weight.shape
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out] for [..., in]; a weight of more dimensions is flattened to two."""
        x = x.to(self.weight.dtype)
        if self._packed is not None:
            return product(x, self._packed, self.bias)
        return functional.linear(x, self.weight.flatten(1), self.bias)

    def matrices(self) -> list[Tensor]:
        """Return what it multiplies with, while that is not packed: each [out, in]."""
        return [self.weight.flatten(1)] if self._packed is None else []

    def pack(self) -> None:
        """Keep the weight packed only; its parameter is empty then."""
        for matrix in self.matrices():
            self._packed = packed(matrix)
            self.weight.data = matrix.new_empty(0)

    def unpack(self) -> None:
        """Keep it as it was."""
        if self._packed is not None:
            self.weight.data = self._packed.to_dense().view(self._shape)
            self._packed = None


class Attention(nn.Module):
    """Attention of some tokens to themselves; causal: each sees those before it only.

    In the last block one token of each row asks all: `of_one` is for that one, `forward` for those
    before it.
    """

    def __init__(
        self, attention: nn.MultiheadAttention, *, is_causal: bool, is_last: bool = False
    ) -> None:
        super().__init__()
        if attention.in_proj_weight is None or attention.in_proj_bias is None:
            raise TypeError("attention to other widths, or without biases, is not built here")
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = Projection(attention.out_proj.weight, attention.out_proj.bias)
        self._heads = attention.num_heads
        self._is_causal = is_causal
        width = attention.embed_dim
        self._parts = [slice(width), slice(width, None)] if is_last else [slice(None)]
        """Of the weights of queries, keys and values: what one product takes of them."""
        self._packed: list[Tensor] = []
        """One for each of these parts."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, tokens, width] for the same."""
        query, key, value = self._project(x, 0).unbind(2)
        return self._attend(query, key, value, is_causal=self._is_causal)

    def of_one(self, x: Tensor, at: Tensor) -> Tensor:
        """Return [n, 1, width]: what `forward` gives at one token of each row.

        Args:
            x: [n, tokens, width].
            at: int64 [n]: which token.
        """
        (query,) = self._project(_one(x, at), 0).unbind(2)
        key, value = self._project(x, 1).unbind(2)
        seen = None
        if self._is_causal:
            places = torch.arange(x.shape[1], device=x.device)
            seen = (places <= at[:, None])[:, None, None]
        return self._attend(query, key, value, mask=seen)

    def matrices(self) -> list[Tensor]:
        """Return what it multiplies with, while that is not packed: each [out, in]."""
        return [] if self._packed else [self.in_proj_weight[part] for part in self._parts]

    def pack(self) -> None:
        """Keep the weights packed only; their parameter is empty then."""
        if matrices := self.matrices():
            self._packed = [packed(matrix) for matrix in matrices]
            self.in_proj_weight.data = self.in_proj_weight.new_empty(0)

    def unpack(self) -> None:
        """Keep them as they were."""
        if self._packed:
            self.in_proj_weight.data = torch.cat([each.to_dense() for each in self._packed])
            self._packed = []

    def _project(self, x: Tensor, number: int) -> Tensor:
        """Return [n, tokens, thirds, heads, head width] by one of the parts."""
        part = self._parts[number]
        given, bias = x.to(self.in_proj_weight.dtype), self.in_proj_bias[part]
        if self._packed:
            found = product(given, self._packed[number], bias)
        else:
            found = functional.linear(given, self.in_proj_weight[part], bias)
        return found.view(*x.shape[:2], -1, self._heads, x.shape[2] // self._heads)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        is_causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal
        )
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class Mlp(nn.Module):
    """The two products behind each attention."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.c_fc = Projection(mlp.c_fc.weight, mlp.c_fc.bias)
        self.gelu = mlp.gelu
        self.c_proj = Projection(mlp.c_proj.weight, mlp.c_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., width] for the same."""
        projected: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return projected


class Block(nn.Module):
    """Attention and MLP, each added to the fp32 stream that goes by."""

    def __init__(self, block: Any, *, is_causal: bool, is_last: bool) -> None:
        super().__init__()
        self.ln_1 = block.ln_1
        self.attn = Attention(block.attn, is_causal=is_causal, is_last=is_last)
        self.ls_1 = block.ls_1
        self.ln_2 = block.ln_2
        self.mlp = Mlp(block.mlp)
        self.ls_2 = block.ls_2

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [n, tokens, width] for the same."""
        return self._through_mlp(x + self.ls_1(self.attn(self.ln_1(x))))

    def of_one(self, x: Tensor, at: Tensor) -> Tensor:
        """Return float32 [n, width]: what `forward` gives at one token of each row."""
        attended = self.attn.of_one(self.ln_1(x), at)
        return self._through_mlp(_one(x, at) + self.ls_1(attended))[:, 0]

    def _through_mlp(self, x: Tensor) -> Tensor:
        through: Tensor = x + self.ls_2(self.mlp(self.ln_2(x)))
        return through


class Transformer(nn.Module):
    """The blocks, one after the other."""

    def __init__(self, transformer: Any, *, is_causal: bool) -> None:
        super().__init__()
        last = len(transformer.resblocks) - 1
        self.resblocks = nn.ModuleList(
            Block(block, is_causal=is_causal, is_last=number == last)
            for number, block in enumerate(transformer.resblocks)
        )

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        """Return float32 [n, width]: one token a row, for float32 [n, tokens, width]."""
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x)
        assert isinstance(last, Block)  # noqa: S101 - for the type: ModuleList forgets it
        return last.of_one(x, at)


class ImageTower(nn.Module):
    """A vision transformer, read at its class token."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self._patch_size = visual.patch_size
        self._grid_size = visual.grid_size
        self.conv1 = Projection(visual.conv1.weight, None)
        self.class_embedding = visual.class_embedding
        self.positional_embedding = visual.positional_embedding
        self.ln_pre = visual.ln_pre
        self.transformer = Transformer(visual.transformer, is_causal=False)
        self.ln_post = visual.ln_post
        self.proj = visual.proj

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 [n, dim] for float32 [n, 3, height, width]."""
        patches = self.conv1(self._patches(pixels.to(self.conv1.weight.dtype)))
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = torch.cat([first, patches.float()], dim=1) + self.positional_embedding
        at = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
        pooled: Tensor = self.ln_post(self.transformer(self.ln_pre(x), at)) @ self.proj
        return pooled

    def _patches(self, pixels: Tensor) -> Tensor:
        """Return [n, patches, 3 * patch height * patch width]; what is left over is cut off."""
        (down, across), (rows, columns) = self._patch_size, self._grid_size
        whole = pixels[:, :, : rows * down, : columns * across]
        cut = whole.reshape(len(pixels), 3, rows, down, columns, across)
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class TextTower(nn.Module):
    """A causal transformer, read at the end of the text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.transformer = Transformer(model.transformer, is_causal=True)
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection

    def forward(self, ids: Tensor) -> Tensor:
        """Return float32 [n, dim] for token ids, int64 [n, tokens]; a text ends at its greatest."""
        at = ids.argmax(dim=1)
        # No token sees those behind it: what follows the last end takes part in nothing.
        ids = ids[:, : int(at.max()) + 1]
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        pooled: Tensor = self.ln_final(self.transformer(x, at)) @ self.text_projection
        return pooled


def image_tower(open_clip: Any, visual: Any) -> ImageTower | None:
    """Return our tower over the weights of open_clip's; None where it is of a kind not built here.

    Args:
        open_clip: the imported library.
        visual: its image tower.
    """
    kinds = open_clip.transformer
    is_ours = (
        type(visual) is kinds.VisionTransformer
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and visual.proj is not None
        and not visual.output_tokens
        and _is_plain(kinds, visual.transformer)
    )
    return ImageTower(visual) if is_ours else None


def text_tower(open_clip: Any, model: Any) -> TextTower | None:
    """Return our tower over the weights of open_clip's; None where it is of a kind not built here.

    Args:
        open_clip: the imported library.
        model: its whole CLIP.
    """
    is_ours = (
        model.text_pool_type == "argmax"
        and model.attn_mask is not None
        and isinstance(model.text_projection, Tensor)
        and _is_plain(open_clip.transformer, model.transformer)
    )
    return TextTower(model) if is_ours else None


def _one(x: Tensor, at: Tensor) -> Tensor:
    """Return [n, 1, width] of [n, tokens, width]: the token `at` of each row."""
    return x[torch.arange(len(x), device=x.device), at][:, None]


def _is_plain(kinds: Any, transformer: Any) -> bool:
    return all(
        type(block) is kinds.ResidualAttentionBlock
        and type(block.attn) is nn.MultiheadAttention
        and not hasattr(block, "ln_1_kv")
        for block in transformer.resblocks
    )
