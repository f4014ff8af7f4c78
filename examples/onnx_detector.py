"""A generator as ONNX in front of a detector of one's own: python examples/onnx_detector.py generator.onnx picture.jpg

It needs numpy, Pillow and onnxruntime, and nothing of faap.
"""

import json
import os
import sys

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or onnxruntime tells Microsoft of its use
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
known = session.get_modelmeta().custom_metadata_map
mean, std = (np.array(json.loads(known[name]), np.float32)[:, None, None] for name in ("mean", "std"))


def perturb(image: Image.Image) -> Image.Image:
    """Perturb a picture of 8 bits, without transparency, at the size at which the detector takes it."""
    pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    (moved,) = session.run(["perturbed"], {"pixel_values": ((pixels - mean) / std)[None]})
    levels = ((moved[0] * std + mean) * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0))


if __name__ == "__main__":
    image = ImageOps.exif_transpose(Image.open(sys.argv[2]))  # upright, as cameras mean it
    perturb(image).save("perturbed.png")  # or my_detector(perturb(image))
