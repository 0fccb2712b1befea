"""Draws face results into a picture."""

import io

from PIL import Image, ImageDraw, ImageFont, ImageOps

from daemon.jobs import JsonObject

BOX = "#2dd4bf"
LANDMARKS = ("#f97316", "#f97316", "#facc15", "#a78bfa", "#a78bfa")
"""Left eye, right eye, nose, left and right corner of the mouth."""


def draw_faces(picture: bytes, result: JsonObject) -> bytes:
    """Return the upright picture as PNG, with boxes, landmarks and confidences.

    Args:
        picture: the file as it was uploaded.
        result: the result of a face_detection or face_embedding job.
    """
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(picture))).convert("RGB")
    pen = ImageDraw.Draw(image)
    width = max(2, round(max(image.size) / 400))
    size = max(12, round(max(image.size) / 60))
    font = ImageFont.load_default(size)
    for face in result["faces"]:
        box = face["bbox"]
        corner = (box["x"] + box["width"], box["y"] + box["height"])
        pen.rectangle([(box["x"], box["y"]), corner], outline=BOX, width=width)
        for (x, y), colour in zip(face["landmarks"], LANDMARKS, strict=True):
            pen.ellipse([x - width, y - width, x + width, y + width], fill=colour)
        label = f"{face['face_index']}: {face['confidence']:.2f}"
        corner = (box["x"], max(0, box["y"] - size - 2 * width))
        pen.rectangle(pen.textbbox(corner, label, font), fill=BOX, outline=BOX, width=width)
        pen.text(corner, label, fill="black", font=font)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
