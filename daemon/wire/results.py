"""What each task type makes of a picture: the `result` of a completed job."""

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from daemon.jobs import TaskType
from daemon.wire.schema import Count, MediaStoreId, Uuid, WireModel

Unit: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Point: TypeAlias = Annotated[
    list[float],
    Field(min_length=2, max_length=2, description="x and y, pixels of the upright picture."),
]


class PictureSize(WireModel):
    """Of an upright picture."""

    width: int = Field(ge=1, description="Pixels.")
    height: int = Field(ge=1, description="Pixels.")


class ImageSize(PictureSize):
    """The upright picture that boxes and landmarks are told in."""

    preview: PictureSize | SkipJsonSchema[None] = Field(
        None,
        description="The media store's preview, where that was looked at and not the original."
        " Width and height above are then the original's where the store tells them; `notes` of"
        " the inference say where they are the preview's.",
    )


class Provenance(WireModel):
    """Which model really ran, of which weights, where and how."""

    model: str = Field(description="Architecture or file name.", examples=["ViT-B-32-quickgelu"])
    weights: str = Field(
        description="Where they came from; UNTRAINED says that they are random.",
        examples=["openai"],
    )
    device: str = Field(description="The device that really ran.", examples=["cpu", "cuda:0"])
    precision: str = Field(description="Arithmetic of the forward pass.", examples=["fp32"])
    runtime: str | SkipJsonSchema[None] = Field(
        None,
        description="What ran a face model where that was chosen at its load; absent for ONNX"
        " Runtime.",
        examples=["OpenVINO 2026.4.1"],
    )
    notes: list[str] | SkipJsonSchema[None] = Field(
        None, description="What a person must know of the result; absent where there is nothing."
    )


class Inference(Provenance):
    """What ran, and how long the job took."""

    timings_ms: dict[str, Annotated[float, Field(ge=0)]] = Field(
        description="Milliseconds by stage, as the job saw them, waiting for its turn included.",
        examples=[{"fetch": 4.1, "decode": 92.0, "infer": 61.3, "store": 1.2}],
    )


class FaceInference(Inference):
    """What ran: the recogniser, and the detector before it."""

    detector: Provenance


class ImageEmbeddingResult(WireModel):
    """Of `image_embedding`: one vector, in the collection under the picture's own id."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "embedding_dimension": 512,
                    "stored_in_vector_db": True,
                    "collection": "image_embeddings",
                    "point_id": 12345,
                    "image": {"width": 4032, "height": 3024},
                    "inference": {
                        "model": "ViT-B-32-quickgelu",
                        "weights": "openai",
                        "device": "cpu",
                        "precision": "fp32",
                        "timings_ms": {"fetch": 4.1, "decode": 92.0, "infer": 61.3, "store": 1.2},
                    },
                }
            ]
        }
    )

    embedding_dimension: Annotated[int, Field(ge=1)] = Field(
        description="Length of the vector: 512, unless another CLIP is configured."
    )
    stored_in_vector_db: Literal[True]
    collection: Literal["image_embeddings"]
    point_id: MediaStoreId = Field(description="The media_store_id.")
    image: ImageSize
    inference: Inference


class Box(WireModel):
    """Where a face is, in pixels of the upright picture; it may reach beyond the edge."""

    x: float = Field(description="Left edge.", examples=[100.5])
    y: float = Field(description="Upper edge.", examples=[200.3])
    width: float = Field(ge=0, examples=[150.0])
    height: float = Field(ge=0, examples=[200.0])


class Face(WireModel):
    """One face of a picture."""

    face_index: Count = Field(description="Its place in the list, from 0.")
    bbox: Box
    landmarks: list[Point] = Field(
        min_length=5,
        max_length=5,
        description="Left eye, right eye, nose, left and right corner of the mouth, as seen.",
        examples=[[[120.0, 220.0], [140.0, 220.0], [130.0, 240.0], [110.0, 250.0], [150.0, 250.0]]],
    )
    confidence: Unit = Field(description="The detector's score.", examples=[0.95])


class StoredFace(Face):
    """One face of a picture, whose vector is stored."""

    point_id: Uuid = Field(description="Its vector's id in `face_embeddings`.")


class FaceDetectionResult(WireModel):
    """Of `face_detection`: the faces, which the media store was given too."""

    faces: list[Face]
    face_count: Count = Field(description="How many faces.")
    image: ImageSize
    inference: Inference


class FaceEmbeddingResult(WireModel):
    """Of `face_embedding`: the faces, each with one vector in the collection."""

    faces: list[StoredFace]
    face_count: Count = Field(description="How many faces.")
    embedding_dimension: Annotated[int, Field(ge=1)] = Field(
        description="Length of each vector: 512 but of a recogniser that gives another."
    )
    stored_in_vector_db: Literal[True]
    collection: Literal["face_embeddings"]
    image: ImageSize
    inference: FaceInference


RESULTS: dict[TaskType, type[WireModel]] = {
    TaskType.IMAGE_EMBEDDING: ImageEmbeddingResult,
    TaskType.FACE_DETECTION: FaceDetectionResult,
    TaskType.FACE_EMBEDDING: FaceEmbeddingResult,
}
