"""A student as an ONNX file, and used by onnxruntime alone: python examples/export_and_use.py (half a minute)

The student is the one that comes with the package. Needs the extra `onnx`. Writes exported/ and digits.png.
"""

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import pidistill
from pidistill.files.folders import ASSETS

student = ASSETS / "digits" / "student"    # or a run of yours
print(pidistill.export(str(student), "onnx", Path("exported"), force=True, options={"pixels": True}))

# From here on nothing of pidistill is used: noise and labels in, pixels out.
session = onnxruntime.InferenceSession("exported/student.onnx", providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
noise = rng.standard_normal((50, 1, 16, 16), dtype=np.float32)
labels = np.repeat(np.arange(10), 5)    # five of each digit
image, pixels = session.run(None, {"noise": noise, "labels": labels})
print("image", image.shape, image.min(), image.max(), "pixels", pixels.shape, pixels.dtype)
columns = pixels.reshape(10, 5, 16, 16)
sheet = np.concatenate([np.concatenate(list(column), axis=0) for column in columns], axis=1)    # a column for each digit
Image.fromarray(sheet).resize((sheet.shape[1] * 4, sheet.shape[0] * 4), Image.Resampling.NEAREST).save("digits.png")
print("digits.png")
