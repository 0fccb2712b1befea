"""Groups for what a picture goes through: decoding, CLIP, the face models."""

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from daemon.cores import usable_cores
from daemon.settings.group import Group

Decoding: TypeAlias = Literal["fast", "exact"]


class ImageSettings(Group):
    """What of pictures is decoded, and how."""

    max_pixels: int = Field(100_000_000, ge=1, description="larger pictures are refused")
    background: str = Field(
        "#ffffff", pattern=r"^#[0-9a-fA-F]{6}$", description="behind transparent pixels"
    )
    decoders: int = Field(
        0,
        ge=0,
        le=256,
        description="pictures decoded at a time, each in a process of its own; 0: one a core",
    )
    decode_seconds: float = Field(
        60, ge=0, description="longest decoding of one picture; 0 = no limit"
    )
    decode_memory_bytes: int = Field(
        0, ge=0, description="most memory of a decoder; 0 = what max_pixels may need"
    )
    decoding: Decoding = Field(
        "fast", description="fast: large JPEGs at a smaller scale for CLIP; exact: every pixel"
    )

    @property
    def decoder_count(self) -> int:
        """How many pictures are decoded at a time."""
        return self.decoders or usable_cores()


class ClipSettings(Group):
    """The image embedding model."""

    model: str = Field("ViT-B-32-quickgelu", description="open_clip architecture")
    weights: str = Field(
        "openai",
        min_length=1,
        description="openai, a path, or untrained (random; demos and tests only)",
    )
    batch_size: int = Field(
        0,
        ge=0,
        le=1024,
        description="most pictures in one forward pass; 0: 8 on a CPU, 128 on a GPU",
    )
    passes: int = Field(
        0,
        ge=0,
        le=256,
        description="forward passes at a time on a CPU, sharing its cores; 0: measured at the load",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="bf16: half the bits, cosine 0.9999; auto: the faster, measured at the load",
    )


class FacesSettings(Group):
    """Face detection and recognition."""

    pack: str = Field(
        "buffalo_l",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="InsightFace pack, yunet, or cascade (no weights needed)",
    )
    detector: Path | None = Field(None, description="an ONNX detector instead of the pack's")
    recogniser: str = Field(
        "", description="an ONNX recogniser instead of the pack's, or untrained"
    )
    threshold: float = Field(0.5, ge=0, le=1, description="lowest confidence of a face")
    batch_size: int = Field(
        0,
        ge=0,
        le=256,
        description="most pictures or faces in one pass; 0: what pays on the device",
    )
    passes: int = Field(
        0, ge=0, le=64, description="passes side by side on a CPU; 0: one a core, at most 4"
    )
    runtime: Literal["auto", "onnxruntime", "openvino"] = Field(
        "auto",
        description="on a CPU; auto: OpenVINO where installed, quicker and of the same answers",
    )
