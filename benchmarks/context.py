"""What neighbouring slices tell a k-Unet: networks of one and of several slices, scored on a volume's first slices.

    python benchmarks/context.py RAW LABELS --voxel-size 5 --out DIR [--ks 2,16] [--seeds 3] [--steps 3000]
                                 [--arms "0;1 10;2 10;2 20"] [--scored 32] [--gap 16] [--teacher 16:2:20]

An arm is `context` and `context_distance` in nm (`core.TrainConfig`); 0 is single slices. Each network learns from the
slices of RAW from SCORED + GAP on, of which the middle ones are held out to choose model and threshold. It is scored at
that threshold on the first SCORED slices, without post-processing. With --teacher K:CONTEXT:DISTANCE the networks of
the arms learn from labels and teacher together (the default of `distill`); the teacher is that network of seed 0, made
by an earlier call. One core. Existing results are kept. Written to DIR: models, a JSON for each, and `context.csv`.
"""

from __future__ import annotations

import argparse
from itertools import product

from commands import Row, add_one_volume, once, parsed_one_volume, score, told, train, write_csv


def name_of(k: int, arm: str, seed: int) -> str:
    return f"{k}unet-context-{arm.replace(' ', '-')}-{seed}"


def network(k: int, arm: str, seed: int, given: argparse.Namespace) -> Row:
    context, *distance = arm.split()
    how: list[object] = ["train"]
    name = name_of(k, arm, seed)
    if given.teacher:
        teacher = name_of(*given.teacher, 0)
        how, name = ["distill", given.out / f"{teacher}.safetensors"], f"{name}-by-{teacher}"
    model = given.out / f"{name}.safetensors"
    options = ["--k", k, "--context", context, *(["--context-distance", *distance] if distance else [])]
    learnt = f"{given.learnt.start}:{given.learnt.stop}"
    options += ["--steps", given.steps, "--seed", seed, "--threads", 1, "--slices", learnt]

    def measure() -> Row:
        train(model, *how, given.raw, given.labels, *given.size, *options)
        about = {"k": k, "context": context, "distance_nm": "".join(distance), "seed": seed, "steps": given.steps}
        about["teacher"] = " ".join(map(str, given.teacher))
        return about | score(model, *given.val, *given.size)

    return once(model.with_suffix(".json"), measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_one_volume(parser)
    parser.add_argument("--ks", default="2")
    parser.add_argument("--arms", default="0;1 10;2 10;2 20", help="CONTEXT or CONTEXT NM, with semicolons between")
    parser.add_argument("--teacher", default="", help="K:CONTEXT:DISTANCE")
    given = parsed_one_volume(parser)
    if given.teacher:
        k, *arm = given.teacher.split(":")
        given.teacher = int(k), " ".join(arm)
    ks = [int(k) for k in given.ks.split(",")]
    rows = [network(k, arm, seed, given) for seed, k, arm in product(range(given.seeds), ks, given.arms.split(";"))]
    write_csv(given.out / "context.csv", rows)
    for k, arm in product(ks, given.arms.split(";")):
        ious = [row["iou"] for row in rows if (row["k"], f"{row['context']} {row['distance_nm']}".strip()) == (k, arm)]
        print(f"{k}-Unet, context {arm}: IoU {told(ious)}")


if __name__ == "__main__":
    main()
