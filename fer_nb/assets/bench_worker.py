"""One model in a process of its own, for `fer-nb bench`. Needs Python and NumPy alone, so that any interpreter can run it.

Reads questions as lines of JSON and answers each with one. What the model prints goes to the error stream."""
import contextlib
import hashlib
import importlib
import inspect
import json
import os
import sys
import threading
import time

import numpy as np


def family(pid="self"):
    "The numbers of a process's children, theirs, and so on, where the system tells (Linux)."
    below = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                below += file.read().split()
    return below + [p for child in below for p in family(child)]


def cpu_seconds():
    "Processor time of this process and of those that it has started."
    total = time.process_time()
    for pid in family():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            total += sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
    return total


def peak_mb():
    "The most memory that this process and those it has started have had, in MB; None where the system does not say."
    if os.path.exists("/proc/self/status"):  # `getrusage` there counts what the parent had before it started this one
        total = 0
        for pid in ["self", *family()]:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
                total += next((int(line.split()[1]) / 2**10 for line in file if line.startswith("VmHWM")), 0)
        return total
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def code_digest(module):
    "Of the Python files of the package that a module belongs to: answers of other code are no longer its answers."
    top = sys.modules[module.__name__.partition(".")[0]]
    files = [f for f in [getattr(top, "__file__", None)] if f]
    for place in getattr(top, "__path__", ()):
        files += [os.path.join(folder, name) for folder, _, names in os.walk(place) for name in names if name.endswith(".py")]
    h = hashlib.sha256()
    for path in sorted(set(files)):
        with open(path, "rb") as file:
            h.update(os.path.basename(path).encode() + file.read())
    return h.hexdigest()[:16]


def weight_digests(model):
    """SHA-256 of the files that a model names in `weights`, by their names without ending; one whose name is taken by then has its
    ending too ("face.xml" beside "face"), and a number where that is taken as well."""
    named = getattr(model, "weights", None) or ()
    paths = dict.fromkeys([named] if isinstance(named, (str, os.PathLike)) else named)
    digests = dict(getattr(model, "digests", None) or {})   # of a network that lies in no file
    for path in paths:
        name = os.path.basename(path)
        names = [os.path.splitext(name)[0], name] + ["%s %d" % (name, k) for k in range(2, len(paths) + 2)]
        with open(path, "rb") as file:
            digests[next(n for n in names if n not in digests)] = hashlib.sha256(file.read()).hexdigest()
    return digests


def named_labels(*places):
    "The labels of the first place that has some: a model's `labels`, its module's LABELS."
    for given in places:
        if given is not None and len(given):
            return [str(k) for k in given]
    return []


def made(spec, settings):
    "The object that `module:name` means; called with the settings, if there are some."
    module, _, name = spec.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found(**settings) if settings is not None else found


def as_table(answers, labels, n):
    "Probabilities (n, C), which of the images had a face, and the labels; answers as a function gives them."
    if hasattr(answers, "columns"):   # a data frame names its columns
        answers = answers.to_dict("records")
    if not hasattr(answers, "shape"):
        answers = list(answers)
        if len(answers) != n:
            raise ValueError(f"{len(answers)} answers for {n} images")
        named = [a for a in answers if isinstance(a, dict)]
        if named:
            labels = labels or sorted(named[0])   # some sort an answer by its probabilities
            other = next((a for a in named if set(a) != set(labels)), None)
            if other is not None:
                raise ValueError(f"an answer with the labels {', '.join(map(str, other))}; {', '.join(map(str, labels))} expected")
        answers = [None if a is None else [a[k] for k in labels] if isinstance(a, dict) else a for a in answers]
        found = np.array([a is not None for a in answers], bool)
        given = [np.asarray(a, float) for a in answers if a is not None]
        if len({a.shape for a in given}) > 1:
            raise ValueError("answers of different lengths: " + " and ".join(sorted({str(len(np.atleast_1d(a))) for a in given})) + " probabilities")
        table = np.full((n, *(given[0].shape if given else (len(labels),))), np.nan)
        table[found] = given if given else table[found]
    else:
        table = np.asarray(answers, float)
        found = np.ones(len(table), bool)
    return table, found, [str(k) for k in labels or []]


def asked(model, images, cropped):
    "The answers of a model; `cropped` goes to those that know the word."
    try:
        knows = "cropped" in inspect.signature(model).parameters   # behind decorators too
    except (TypeError, ValueError):
        knows = False
    return model(images, cropped=cropped) if knows else model(images)


def end_with(parent):
    "End this process when the one that asks is gone, even where it was killed."
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main():
    out, questions = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(0))
    os.dup2(2, 1)                     # whatever is printed goes to the error stream
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)   # a model that reads its input would take the questions
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    sys.path.insert(0, os.getcwd())
    model, labels = None, []
    for line in questions:
        question, start, cpu = json.loads(line), time.perf_counter(), cpu_seconds()
        try:
            if "spec" in question:
                model = made(question["spec"], question.get("settings"))
                named = [question["spec"], (question.get("settings") or {}).get("module")]
                modules = [importlib.import_module(spec.partition(":")[0]) for spec in named if spec]
                labels = named_labels(getattr(model, "labels", None), getattr(modules[0], "LABELS", None))
                answer = {"labels": labels, "code": "".join(map(code_digest, modules)), "weights": weight_digests(model),
                          "gradients": callable(getattr(model, "attacked", None)), "note": str(getattr(model, "note", None) or "")}
            else:
                with np.load(question["images"], allow_pickle=False) as file:
                    images = list(file["all"]) if "all" in file else [file[str(k)] for k in range(len(file.files))]
                begun, used = time.perf_counter(), cpu_seconds()
                said = asked(model, images, question["cropped"]) if "attack" not in question else model.attacked(images, **question["attack"])
                table, found, names = as_table(said, labels, len(images))
                model_seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": cpu_seconds() - used}
                np.savez(question["out"], table=table, found=found)
                answer = {"labels": names} | model_seconds
            answer |= {"peak_mb": peak_mb()}
        except BaseException as e:  # said to the other side, which writes it into a row
            answer = {"error": f"{type(e).__name__}: {e}"}
        answer["all_seconds"], answer["all_cpu_seconds"] = time.perf_counter() - start, cpu_seconds() - cpu
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
