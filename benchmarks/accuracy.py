"""How good teachers and students become: whole chains from the command line, over seeds.

    python benchmarks/accuracy.py RAW LABELS {--val-raw R --val-labels L | --hold-out N} --out DIR
                                  [--seeds 3] [--teachers 3] [--teacher-steps 4500]
                                  [--students 4:6000,2:8000,1:8000] [--untaught 2:8000] [--precision 32-true]
                                  [--jobs 2]

For each seed a 16-Unet is trained on RAW and LABELS, and then teaches the students K:STEPS; where there are fewer
teachers than seeds, the students of the other seeds have the first teachers again. Untaught networks learn from the
labels alone. Everything else is at its default: model and threshold are chosen on the middle slices of RAW, which are
held out. Each network has one core. All are then scored at their own threshold, on the whole of R or on the last N
slices of RAW, which are then not learnt from. Existing results are kept. Written to DIR: models, a JSON for each, and
`accuracy.csv`; means and standard deviations are printed.
"""

from __future__ import annotations

import argparse
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from commands import Row, add_shared, once, parsed, score, told, train, write_csv


def teacher(seed: int, given: argparse.Namespace) -> Row:
    model = Path(given.out) / f"teacher-{seed}.safetensors"
    budget = ["--k", 16, "--steps", given.teacher_steps, "--precision", given.precision]
    return network(model, ["train"], budget, "teacher", seed, given)


def student(k: int, steps: int, seed: int, taught: Future[Row], given: argparse.Namespace) -> Row:
    taught.result()  # wait for the teacher, which was begun before
    model = Path(given.out) / f"{k}unet-{seed}.safetensors"
    by = model.with_name(f"teacher-{seed % given.teachers}.safetensors")
    return network(model, ["distill", by], ["--k", k, "--steps", steps], f"{k}-Unet", seed, given)


def untaught(k: int, steps: int, seed: int, given: argparse.Namespace) -> Row:
    model = Path(given.out) / f"{k}unet-untaught-{seed}.safetensors"
    return network(model, ["train"], ["--k", k, "--steps", steps], f"{k}-Unet, untaught", seed, given)


def budgets(text: str) -> list[tuple[int, int]]:
    """Parse K:STEPS with commas between into pairs of k and steps."""
    pairs = (each.split(":") for each in text.split(",") if each)
    return [(int(k), int(steps)) for k, steps in pairs]


def network(
    model: Path, how: list[object], budget: list[object], name: str, seed: int, given: argparse.Namespace
) -> Row:
    def measure() -> Row:
        train(model, *how, given.raw, given.labels, *budget, "--seed", seed, "--threads", 1, *given.size)
        return {"network": name, "seed": seed} | score(model, given.val_raw, given.val_labels, *given.size)

    return once(model.with_suffix(".json"), measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared(parser, or_hold_out=True)
    parser.add_argument("--teachers", type=int, help="as many as seeds if not given")
    parser.add_argument("--teacher-steps", type=int, default=4500)
    parser.add_argument("--students", type=budgets, default="4:6000,2:8000,1:8000", help="K:STEPS with commas between")
    parser.add_argument("--untaught", type=budgets, default="", help="the same, from labels alone")
    parser.add_argument("--precision", default="32-true", help="of the teacher's training")
    given = parsed(parser)
    given.teachers = given.teachers or given.seeds
    with ThreadPoolExecutor(given.jobs) as pool:
        taught = [pool.submit(teacher, seed, given) for seed in range(given.teachers)]
        futures = taught + [
            pool.submit(student, k, steps, seed, taught[seed % given.teachers], given)
            for seed in range(given.seeds)
            for k, steps in given.students
        ]
        futures += [
            pool.submit(untaught, k, steps, seed, given) for seed in range(given.seeds) for k, steps in given.untaught
        ]
        rows = [each.result() for each in futures]
    write_csv(Path(given.out) / "accuracy.csv", rows)
    for name in dict.fromkeys(row["network"] for row in rows):
        ious = [row["iou"] for row in rows if row["network"] == name]
        print(f"{name}: IoU {told(ious)} over {len(ious)} seeds")


if __name__ == "__main__":
    main()
