"""The server of page 50, run for real on this machine's loopback: 200 requests, their errors and what they cost.

    python benchmarks/serve.py --python ENV/bin/python    # an environment with fer-nb, fastapi and uvicorn
"""
import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import HERE, machine, photograph, save
from PIL import Image

from fer_nb.predict import Recogniser, Result
from fer_nb.shipped import shipped_weights


def recipe() -> str:
    "The text of the server, as it stands on the page."
    cells = json.loads((HERE.parent / "nbs/50_predict.ipynb").read_text())["cells"]
    (text,) = ["".join(c["source"]) for c in cells if "# server.py" in "".join(c["source"])]
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


def family(process: int) -> list[int]:
    "A process and those that it started (Linux)."
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(p for child in children for p in family(int(child)))]


def used(processes: list[int]) -> tuple[float, float]:
    "Processor seconds, and megabytes in memory, of all."
    stats = [Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split() for p in processes]
    pages = [int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in processes]
    return (sum(int(s[11]) + int(s[12]) for s in stats) / os.sysconf("SC_CLK_TCK"), sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20)


def ask(url: str, data: bytes) -> tuple[int, str, float]:
    "Status, answer and seconds of a request."
    start = time.perf_counter()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            return answer.status, answer.read().decode(), time.perf_counter() - start
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode(), time.perf_counter() - start


def main() -> None:
    "Run the benchmark."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="of an environment with fastapi and uvicorn")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "serve.json", help="result file")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "server.py").write_text(recipe())
        Image.fromarray(photograph()).save(f"{folder}/photo.jpg", quality=90)
        photo, none = Path(folder, "photo.jpg").read_bytes(), b"no image at all"
        command = [os.path.abspath(args.python), "-m", "uvicorn", "server:app", "--workers", str(args.workers), "--port", str(port),
                   "--log-level", "warning"]
        server = subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            url, start = f"http://127.0.0.1:{port}/faces", time.monotonic()
            while True:
                try:
                    ask(url, none)
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() - start < 120, "the server did not start: --python of an environment with fastapi and uvicorn?"
                    time.sleep(.2)
            for _ in range(8 * args.workers):   # until every worker is there
                ask(url, photo)
            before, _ = used(family(server.pid))
            with ThreadPoolExecutor(4) as clients:
                answers = list(clients.map(lambda k: ask(url, photo if k % 10 else none), range(args.requests)))
            after, memory = used(family(server.pid))
        finally:
            server.terminate()
            server.wait(30)
    good = [json.loads(text)["faces"] for status, text, _ in answers if status == 200]
    expected = json.loads(Result("", "ok", Recogniser()(photo)).to_json())["faces"]
    seconds = [s for status, _, s in answers if status == 200]
    result = {"requests": len(answers), "answered (200)": len(good), "no image (415)": sum(a[0] == 415 for a in answers),
              "other statuses": sum(a[0] not in (200, 415) for a in answers),
              "answers that differ from Recogniser's": sum(g != expected for g in good),
              "CPU ms a request": round(1e3 * (after - before) / len(answers), 1),
              "median ms to an answer": round(1e3 * statistics.median(seconds), 1), "MB of all processes": round(memory)}
    print(json.dumps(result, indent=1))
    save(args.out, {"settings": {"workers": args.workers, "clients": 4, "photo": "640 x 480, JPEG"}, "machine": machine(), "results": [result]}, weights=shipped_weights())


if __name__ == "__main__":
    main()
