"""The same training steps on a machine alone and beside busy loops, with threads that wait by spinning and by sleeping."""
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import arguments, report, take_turns

from fer_nb.__main__ import set_threads

STEPS = """
import sys, time, torch
from fer_nb.models import HyFER
torch.manual_seed(0)
net, x, y = HyFER(7, 1, "light").train(), torch.rand(64, 1, 48, 48), torch.randint(7, (64,))
opt = torch.optim.AdamW(net.parameters())
def step():
    torch.nn.functional.cross_entropy(net(x), y).backward()
    opt.step(), opt.zero_grad()
step()
start = time.perf_counter()
for _ in range(int(sys.argv[1]) // 64): step()
print(time.perf_counter() - start)
"""


@contextmanager
def busy(
    n: int,  # loops
) -> Iterator[None]:
    "Others at work on the same cores."
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(
    sleeping: bool,  # as `fer-nb` sets it; False: OpenMP's own way
    loops: int,      # beside it
    images: int,     # in batches of 64
) -> float:          # seconds of the steps alone
    "Training steps of the light student in a process of its own."
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    env = {k: v for k, v in os.environ.items() if k not in names}
    if sleeping:
        set_threads(env)
    with busy(loops):
        done = subprocess.run([sys.executable, "-c", STEPS, str(images)], check=True, env=env, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main() -> None:
    "Time both ways without and beside as many busy loops as there are cores."
    args = arguments("busy_cores", __doc__, images=1280, repeats=5).parse_args()
    cores = len(os.sched_getaffinity(0))
    names = [f"{way}, {loops} busy loops beside it" for way in ("spinning", "sleeping") for loops in (0, cores)]
    load = round(os.getloadavg()[0], 1)
    times = take_turns({name: lambda name=name: run("sleeping" in name, cores * (f" {cores} busy" in name), args.images) for name in names}, args.repeats)
    settings = {"steps": args.images // 64, "batch": 64, "network": "light", "cores": cores, "repeats": args.repeats, "load before": load}
    report(times, {names[1]: names[0], names[3]: names[2], names[0]: names[2]}, settings, Path(args.out))


if __name__ == "__main__":
    main()
