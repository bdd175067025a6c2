"""What a fastai `Learner` is timed with."""
import time

from fastai.callback.core import Callback


class Stopwatch(Callback):
    "The seconds of an epoch's training part, or of all of it: what callbacks do before, training, validation."

    order = -100

    def __init__(
        self,
        whole: bool = False,  # the whole epoch
    ):
        self.whole = whole

    def before_epoch(self) -> None:
        "Start."
        self.start = time.perf_counter()

    def before_train(self) -> None:
        "Start again where only training counts."
        if not self.whole:
            self.before_epoch()

    def after_train(self) -> None:
        "The time so far."
        self.seconds = time.perf_counter() - self.start

    def after_epoch(self) -> None:
        "The time of all of it."
        if self.whole:
            self.after_train()
