"""What networks cost under ONNX Runtime: HyFER's variants, teachers and the usual mobile networks, float and int8."""
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import nn

from common import clock_options, fer2013, machine, save
from fer_nb.core import file_sha256
from fer_nb.export import efficiency, quantize, to_onnx
from fer_nb.models import HYFER, HyFER, create_teacher, load_hyfer

TEACHERS = {"efficientnet_lite0": 96, "efficientnet_lite1": 96, "efficientnet_lite2": 80}  # px that a small budget allows
MOBILE = ("tf_efficientnet_lite0", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv4_conv_small",
          "mobilevit_xxs", "mobilevit_s")


def contestants(
    small: int,      # the second size of the mobile networks, in pixels
) -> Iterator[tuple[str, nn.Module]]:  # name, network with random weights: a clock does not see them
    "All networks, seven classes each."
    for name in HYFER:
        yield f"HyFER {name}", HyFER(7, 1, name).eval()
    for name, size in TEACHERS.items():
        yield f"teacher {name}", create_teacher(name, pretrained=False, input_size=size).eval()
    for name in MOBILE:
        for size in dict.fromkeys((timm.get_pretrained_cfg(name).input_size[-1], small)):
            yield f"{name}, {size} px", create_teacher(name, pretrained=False, input_size=size).eval()


def main() -> None:
    "Run the benchmark."
    parser = clock_options("efficiency", __doc__)
    parser.add_argument("--small", type=int, default=96, help="second size of the mobile networks, px (default 96)")
    parser.add_argument("--only", default="", help="networks with this in their name")
    parser.add_argument("--weights", type=Path, help="a trained HyFER, measured in float and int8 too")
    parser.add_argument("--accuracy", type=Path, help="JSON: name of a row -> accuracy in [0, 1]")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        files, costs = {}, {}
        nets = dict(contestants(options.small))
        if options.weights:
            nets["HyFER as given"] = load_hyfer(options.weights)
        train = fer2013(0).where(split="train")
        for k, (name, net) in enumerate(nets.items()):
            if options.only not in name:
                continue
            files[name] = to_onnx(net, Path(folder) / f"{k}.onnx")
            costs[name] = net
            if name.startswith(("HyFER", "teacher")):
                files[f"{name}, int8"] = quantize(files[name], Path(folder) / f"{k}-int8.onnx", train, n=64)
            print("exported", name, flush=True)
        if not files:
            raise SystemExit(f"--only {options.only}: no such network")
        accuracy = json.loads(options.accuracy.read_text()) if options.accuracy else {}
        accuracy = {name: a for name, a in accuracy.items() if options.only in name} or None
        table = efficiency(files, accuracy, options.batches, options.threads, options.repeats)
        known = efficiency(costs, batches=[1], threads=[1], repeats=0, memory=False).set_index("model")
        plain = table.model.str.removesuffix(", int8")
        table = table.assign(params=plain.map(known.params), macs=plain.map(known.macs))
    print(table.round(3).to_string(index=False))
    settings = {"runtime": "ONNX Runtime", "repeats": options.repeats, "weights": "random" if not options.weights else
                "random; HyFER as given: trained", "latency_ms": "median milliseconds an image, contestants in turns",
                "cpu_ms": "the same in processor time", "peak_mb": "MiB above a process with ONNX Runtime loaded"}
    rows = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
            for row in table.astype(object).where(table.notna(), None).to_dict("records")]
    import onnxruntime
    about = {"weights": {options.weights.stem: file_sha256(options.weights)}} if options.weights else {}
    save(options.out, {"settings": settings, "machine": machine() | {"onnxruntime": onnxruntime.__version__}, "results": rows}, **about)


if __name__ == "__main__":
    main()
