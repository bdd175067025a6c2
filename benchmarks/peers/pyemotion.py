"""PyEmotion 1.0.0, for `fer-nb bench`: `pip install --no-deps PyEmotion==1.0.0 facenet-pytorch art termcolor progress`.

Its answer is the most probable of exp(sigmoid) of its outputs, here divided by their sum. facial-emotion-recognition 0.3.4 has the same weights."""
import numpy as np
import PyEmotion.main
import torch
from torchvision.transforms import Normalize

from fer_nb.bench import attacked_probabilities


class Model:
    def __init__(self):
        self.of = PyEmotion.main.DetectFace(device="cpu")
        self.labels = list(self.of.emotions.values())
        self.weights = [PyEmotion.main.__file__.replace("main.py", "model/main_model.pkl")]
        net = self.of.network
        stages = [net.conv_1, net.conv_2, net.conv_3, net.conv_4, torch.nn.Flatten(), net.linear[:-1]]  # without the sigmoid at its end
        self.net = torch.nn.Sequential(Normalize([0.5], [0.5]), *stages).eval()

    def pixels(self, faces):  # uint8 (H, W) -> (N, 1, 48, 48) in [0, 1]
        return torch.stack([self.of.transform(face) * .5 + .5 for face in faces])

    def find(self, image):
        boxes, _ = self.of.mtcnn.detect(np.ascontiguousarray(image[..., ::-1]))  # it takes OpenCV's order of the colours
        if boxes is None:
            return None
        x1, y1, x2, y2 = (max(0, int(round(v))) for v in max(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1])))
        return grey(image)[y1:y2, x1:x2]

    def __call__(self, images, cropped=False):
        images = [im if im.ndim == 3 else np.repeat(im[..., None], 3, 2) for im in images]
        faces = [grey(im) if cropped else self.find(im) for im in images]
        seen = [f for f in faces if f is not None and f.size]
        with torch.inference_mode():
            p = iter(self.net(self.pixels(seen)).sigmoid().softmax(1).numpy() if seen else ())
        return [next(p) if f is not None and f.size else None for f in faces]

    def attacked(self, images, labels, eps, steps):
        own = [name.lower() for name in self.labels]
        return attacked_probabilities(self.net, self.pixels(map(grey, images)).numpy(), [own.index(k) if k in own else -1 for k in labels], eps, steps)


def grey(image):
    return image if image.ndim == 2 else PyEmotion.main.cv.cvtColor(image, PyEmotion.main.cv.COLOR_RGB2GRAY)


predict = Model()
