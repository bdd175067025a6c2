"""Old words and the field's words for them; and the one move of committed tables and sidecars from the old to the new.

    python docs/rename.py          # columns, values, keys and names of files under results/, benchmarks/ and fer_nb/weights/

The numbers in the tables stay as they are, digit by digit. `store.read_table` accepts the old words, with a note.
"""
from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

from fer_nb.store import OLD_WORDS

ROOT = Path(__file__).resolve().parents[1]

NOTEBOOKS = {  # reading order is import order
    "43_launch": "02_launch", "01_data": "04_data", "02_synth": "05_synth", "03_faces": "06_faces", "09_augment": "07_augment",
    "08_twins": "08_duplicates", "04_audit": "09_audit", "05_balance": "10_balance", "06_loaders": "11_loaders",
    "07_review": "12_review", "10_models": "20_models", "30_metrics": "21_metrics", "37_compare": "22_compare",
    "20_attacks": "23_attacks", "31_evaluate": "24_evaluate", "33_plots": "25_plots", "22_robustness": "26_robustness",
    "32_train": "30_train", "11_distill": "32_distill", "12_sqs": "33_sqs", "21_advtrain": "34_advtrain",
    "34_report": "40_report", "35_pipeline": "41_pipeline", "36_studies": "43_studies", "38_experiments": "44_hyfer_studies",
    "13_sqs_experiments": "45_sqs_studies", "39_reconcile": "46_reconcile", "40_predict": "50_predict", "41_export": "51_export",
    "42_explore": "52_explore", "50_cli": "60_cli"}

MODULES = {"twins": "duplicates", "experiments": "hyfer_studies", "sqs_experiments": "sqs_studies"}

NAMES = {  # names of code that callers, notebooks or records used
    "TwinSearch": "DuplicateSearch", "find_twins": "find_duplicates", "plot_twins": "plot_duplicates", "near_twins": "near_duplicates",
    "read_any": "data.read", "soft_labels": "FERData.soft_labels", "check_counts": "FERData.check_counts",
    "stratified_sample": "FERData.sample", "picture_quality": "image_quality", "straddling": "leakage_table",
    "Splits.select": "Splits.valid", "Splits.report": "Splits.test", "Splits.twins": "Splits.duplicates", "parts": "splits",
    "place": "rank_world", "team": "process_group", "total": "all_reduce", "divided": "map_ranks", "one_folder": "rank0_folder",
    "alone": "single_process", "kept_table": "Store.table", "claim": "Store", "check_setting": "Store",
    "TeacherSpec": "Fit", "Recipe": "Fit", "studies.Fit": "config.Fit", "SQSPreset": "Preset", "told": "to_dict",
    "answers": "cached_views", "earlier": "born_again", "speaks": "valid_mask", "TeacherLogits": "CachedLogits",
    "train_teachers": "fit_teachers", "fit_teacher": "make_teachers, fit", "ask_teacher": "cache_logits", "teacher_on": "logits",
    "Annotators": "AnnotatorTeacher", "find_geometry": "Geometry.find", "fit_geometry": "Geometry.fit",
    "UnitImages": "CheckInputRange", "FiniteLoss": "StopOnNaN", "EarlyStop": "KeepBest", "ready": "eval_mode",
    "fold": "fuse", "lean": "identity_skip", "save_hyfer": "models.save", "load_hyfer": "models.load", "load_teacher": "models.load",
    "study_part": "subsample", "study_pool": "subsample", "compromised": "leaked_ids", "harden": "harden_study", "radius_sweep": "harden_study",
    "price_table": "harden_table", "tradeoff_table": "harden_table", "sqs_studies.PROTOCOLS": "SQS_PROTOCOLS",
    "decided": "review_decisions", "changes": "review_changes", "commands": "ReviewSession.commands",
    "select": "select_predictions", "findings": "audit_findings", "nearest": "nearest_features",
    "Seen": "Result", "seen": "results", "Tracks": "FaceTracker", "many": "batch", "as_table": "Recogniser.table",
    "read_network": "Network.read"}

TABLES = OLD_WORDS | {  # columns, values and keys of tables and sidecars
    "near_twins": "near_duplicates", "earlier HyFER": "first-generation HyFER",
    "teacher earlier HyFER": "teacher first-generation HyFER",
    "reported with a twin in training as it came": "reported with a duplicate in training as it came",
    "accuracy without twins": "accuracy without duplicates", "twins": "duplicates", "exact twins": "exact duplicates",
    "near twins": "near duplicates", "find_twins": "find_duplicates", "find_twins, exact only": "find_duplicates, exact only", "kept logits, one view": "cached logits, one view",
    "kept logits of 4,000 images": "cached logits of 4,000 images", "EADD, kept logits": "EADD, cached logits",
    "kept logits off by, relative to the largest": "cached logits off by, relative to the largest"}

KEYS = {"earlier": "born_again", "answers": "cached_views"}  # of settings, in cards and config.json
VALUES = {("answers", "view"): "each"}                       # of one setting



def moved(
    text: str,  # a cell of a table, a key or a value
) -> str:       # the same, or the field's word for it
    "One word."
    return TABLES.get(text, text)


def tree(
    value: object,  # of a JSON file
) -> object:        # the same with new words
    "Keys and words of a JSON file, at every depth."
    if isinstance(value, dict):
        return {KEYS.get(k, moved(k)): VALUES.get((k, v), tree(v)) if isinstance(v, str) else tree(v) for k, v in value.items()}
    if isinstance(value, list):
        return [tree(v) for v in value]
    return moved(value) if isinstance(value, str) else value


def table(
    text: str,  # a CSV
) -> str:       # the same with new words; every other character stays
    "Columns and cells of a table."
    rows = list(csv.reader(io.StringIO(text)))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([moved(c) for c in row] for row in rows)
    return out.getvalue()


def main() -> None:
    "Move what is committed."
    for path in sorted(p for folder in ("results", "benchmarks", "fer_nb/weights") for p in (ROOT / folder).rglob("*")):
        if path.suffix not in (".csv", ".json"):
            continue
        text = path.read_text(encoding="utf-8")
        if not re.search("|".join(map(re.escape, [*TABLES, *KEYS])), text):
            continue
        if path.suffix == ".csv":
            new = table(text)
        else:
            indent = len(m[1]) if (m := re.search(r"\n( +)", text)) else None
            new = json.dumps(tree(json.loads(text)), indent=indent, ensure_ascii=ascii(text) == text) + ("\n" if text.endswith("\n") else "")
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
