"""Parameters and multiply-accumulates of the teachers and of SQSNet, into results/costs: python benchmarks/costs.py

Nothing is trained or timed: the networks are built without numbers."""
from pathlib import Path

from fer_nb.models import sqsnet_table, teacher_table
from fer_nb.store import run_record, write_record, write_table

FOLDER = Path(__file__).resolve().parents[1] / "results/costs"


def main() -> None:
    "Write both tables and their record."
    tables = {"teachers.csv": teacher_table(), "sqsnet.csv": sqsnet_table()}
    for file, table in tables.items():
        write_table(table, FOLDER / file)
    write_record(FOLDER, list(tables), run_record("python benchmarks/costs.py"))


if __name__ == "__main__":
    main()
