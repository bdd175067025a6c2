"""Packages of Node.js, for `fer-nb bench`: `npm install @vladmandic/face-api@1.7.15 @vladmandic/human@3.3.6
@tensorflow/tfjs@4.22.0 @tensorflow/tfjs-backend-wasm@4.22.0` in a folder that NODE_PACKAGES names."""
import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ["NODE_PACKAGES"])
MODULES = FOLDER / "node_modules/@vladmandic"


class Model:
    def __init__(self, package):
        script = Path(__file__).with_name("node.mjs")
        self.process = subprocess.Popen(["node", str(script), str(FOLDER), package], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, images, cropped=False):
        return [self.one(image, cropped) for image in images]

    def one(self, image, cropped):
        image = np.ascontiguousarray(image if image.ndim == 3 else np.repeat(image[..., None], 3, 2))
        head = json.dumps({"height": image.shape[0], "width": image.shape[1], "cropped": cropped})
        self.process.stdin.write(head.encode() + b"\n" + image.tobytes())
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("node ended; see the error stream")
        return json.loads(line)


@lru_cache
def model(package):
    return Model(package)


def face_api(images, cropped=False):
    return model("face-api")(images, cropped)


def human(images, cropped=False):
    return model("human")(images, cropped)


face_api.labels = ["neutral", "happy", "sad", "angry", "fear", "disgust", "surprise"]
face_api.weights = [MODULES / f"face-api/model/{n}_model.bin" for n in ("face_expression", "ssd_mobilenetv1", "face_landmark_68")]
human.labels = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
human.weights = [MODULES / f"human/models/{n}.bin" for n in ("emotion", "blazeface", "facemesh")]
