"""Widths and shapes by the clock: the shipped network, `light_full`, `light_res` and other widths of them, fused, float and int8."""
import tempfile
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from common import clock_options, fer2013, machine, save

from fer_nb.export import efficiency, quantize, to_onnx
from fer_nb.models import HYFER, HyFER, HyFERConfig, count_macs, fuse
from fer_nb.shipped import shipped_weights


def scaled(
    name: str,       # a variant of HyFER
    by: float,       # its widths times this
    to: int = 16,    # rounded to multiples of it; 1: as they come
) -> HyFERConfig:
    "A variant with other widths of its convolutions."
    like = HYFER[name]

    def width(n: int) -> int:
        return max(to, round(n * by / to) * to)

    return replace(like, stem=width(like.stem), blocks=tuple((width(n), *rest) for n, *rest in like.blocks))


SHAPES = {"light_res": HYFER["light_res"], "light_full": HYFER["light_full"],
          "light_full, 3/4 of the widths": scaled("light_full", 0.75), "light_full, half of the widths": scaled("light_full", 0.5),
          "light_full, widths no multiples of 16": scaled("light_full", 1.0625, 1), "light_res, widths + 1/3": scaled("light_res", 4 / 3)}


def main() -> None:
    "Run the benchmark."
    parser = clock_options("widths", __doc__)
    parser.add_argument("--only", nargs="*", help="these shapes, beside the shipped network")
    options = parser.parse_args()
    torch.manual_seed(0)
    nets = {"shipped (light_res, trained)": HyFER.from_pretrained()}
    nets |= {name: HyFER(7, 1, config).eval() for name, config in SHAPES.items() if not options.only or name in options.only}
    train, files, facts = fer2013(500).where(split="train"), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for k, (name, net) in enumerate(nets.items()):
            files[name] = to_onnx(net, Path(folder) / f"{k}.onnx")
            files[f"{name}, int8"] = quantize(files[name], Path(folder) / f"{k}-int8.onnx", train, n=64)
            bare, config = fuse(net), net.config
            facts[name] = {"widths": [config.stem, *(b[0] for b in config.blocks)], "params": sum(p.numel() for p in bare.parameters()),
                           "macs": count_macs(bare, 48, 1), "trained": name.startswith("shipped")}
            print("exported", name, flush=True)
        table = efficiency(files, None, options.batches, options.threads, options.repeats, memory=False)
    plain = table.model.str.removesuffix(", int8")
    rows = [{"model": name, "int8": row.model != name, "batch": row.batch, "threads": row.threads, "ms": round(row.latency_ms, 4),
             "cpu_ms": round(row.cpu_ms, 4), "file_mb": round(row.file_mb, 3), **facts[name]} for name, row in zip(plain, table.itertuples())]
    print(table.round(3).to_string(index=False))
    settings = {"runtime": "ONNX Runtime", "repeats": options.repeats, "ms": "median milliseconds an image, contestants in turns, one run",
                "weights": "random, which a clock does not see; those of the shipped network trained", "accuracy": "none was measured here"}
    save(options.out, {"settings": settings, "machine": machine() | {"onnxruntime": onnxruntime.__version__}, "results": rows},
         weights=shipped_weights(["hyfer"]))


if __name__ == "__main__":
    main()
