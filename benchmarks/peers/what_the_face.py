"""what-the-face-classification 0.0.27, for `fer-nb bench`: `pip install --no-deps what-the-face-classification==0.0.27 "setuptools<80"`.

Where its finder sees no face, the whole image is one if its answer has a probability of .6 or more."""
import numpy as np
import torch
from PIL import Image
from what_the_face_classification import inference

from fer_nb.bench import attacked_probabilities


class Model:
    def __init__(self):
        self.of = inference.Image_classifier()
        self.labels, self.weights, self.net = list(self.of.classes), [inference.inp_file], self.of.net.eval()

    def pixels(self, faces):  # Pillow images -> (N, 1, 48, 48) in [0, 1]
        return torch.stack([self.of.transform(face) for face in faces])

    def __call__(self, images, cropped=False):
        images = [Image.fromarray(im).convert("RGB") for im in images]
        found = [(im, True) if cropped else self.of.face_crop(im) for im in images]
        with torch.inference_mode():
            probs = self.net(self.pixels([face for face, _ in found])).softmax(1).numpy()
        return [p if sure or p.max() >= .6 else None for p, (_, sure) in zip(probs, found)]

    def attacked(self, images, labels, eps, steps):
        x = self.pixels([Image.fromarray(im) for im in images])
        return attacked_probabilities(self.net, x.numpy(), [self.labels.index(k) if k in self.labels else -1 for k in labels], eps, steps)


predict = Model()
