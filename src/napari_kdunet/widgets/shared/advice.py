"""Advice that a form shows for each setting: label, step of a click, and when to raise, lower or leave it alone.

The settings themselves, with defaults, bounds and a one-sentence help text, are in `napari_kdunet.core.config`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ADVICE", "Advice", "advice_for"]


@dataclass(frozen=True)
class Advice:
    """How a form presents a setting to a user who has not trained networks."""

    label: str
    text: str
    """Effect of raising or lowering the setting, and when to change it."""
    step: float = 1
    """Amount by which one click changes the value."""


#: Advice by setting name; `_DISTIL` overrides it for a distillation.
ADVICE: dict[str, Advice] = {
    "k": Advice(
        "Channels k",
        "Higher: learns more detail, and is slower and larger (four times the size for twice the k). Lower: "
        "fast and small. Raise it when the masks stay rough, lower it when training is too slow.",
    ),
    "bn": Advice(
        "Batch normalisation",
        "On: small networks train reliably. Touch it only to compare with the paper, which trains without it.",
    ),
    "depth": Advice(
        "Depth",
        "Higher: sees more around each pixel, and is larger. Lower it for images smaller than about 100 pixels.",
    ),
    "classes": Advice(
        "Classes",
        "Leave at 2 for one structure and background; raise it when your labels hold several structures, 1, 2, 3 …",
    ),
    "context": Advice(
        "Context",
        "0: each slice by itself. Higher: also sees the slices below and above, which settle what one slice leaves "
        "unclear; slower, and only for volumes. Try 1 where slices are well aligned; a 2-Unet gained nothing from it.",
    ),
    "context_distance": Advice(
        "Context distance",
        "Leave at 0 to use the adjacent slices. Larger: uses slices further away, as the adjacent ones show little "
        "that is new where slices are only a few nm apart.",
        step=5,
    ),
    "boundary": Advice(
        "Outlines as a class",
        "On: the panel Objects separates objects that touch; the mask is as good. Label each object with its own id.",
    ),
    "activation": Advice(
        "Activation",
        "Touch it only to compare with the paper, which uses relu.",
    ),
    "init": Advice(
        "Initial weights",
        "Touch it only when trainings with the same settings give very different results.",
    ),
    "prior_bias": Advice(
        "Bias from prior",
        "On: no steps are spent on learning that most pixels are background.",
    ),
    "steps": Advice(
        "Steps",
        "Empty: the minutes set the length. A number: the training ends after that many steps, however long they "
        "take; useful for comparisons.",
        step=100,
    ),
    "minutes": Advice(
        "Minutes",
        "More is better, with less and less to gain. Pauses do not count. Ignored if steps are given.",
        step=1,
    ),
    "batch": Advice(
        "Batch size",
        "Higher: steadier but slower steps, more memory. Lower it when memory runs out.",
    ),
    "patch": Advice(
        "Patch side",
        "Higher: sees more around each pixel, slower steps, more memory. Lower it when memory runs out, in "
        "multiples of 16 (of 32 at a depth of 5, of 64 at 6).",
    ),
    "pixel_size": Advice(
        "Working pixel size",
        "Larger: faster, sees more around each pixel, loses fine detail. Smaller: the reverse. Lower it for "
        "structures only a few pixels wide.",
        step=1,
    ),
    "lr": Advice(
        "Learning rate",
        "Higher: learns faster, but can become unstable or collapse. Lower it when the loss jumps, raise it when "
        "it hardly falls.",
        step=0.0001,
    ),
    "schedule": Advice(
        "Schedule",
        "Choose one-cycle for a training with a fixed budget, constant for one that you stop yourself.",
    ),
    "weight_decay": Advice(
        "Weight decay",
        "Higher: keeps weights smaller, so that a few labels are not learnt by heart. Seldom worth touching.",
        step=0.001,
    ),
    "warmup": Advice(
        "Warm-up share",
        "Higher: a gentler start. Raise it when the loss explodes in the first steps.",
        step=0.05,
    ),
    "clip": Advice(
        "Gradient clipping",
        "Lower: single bad patches do less harm, but learning is slower. Seldom worth touching.",
        step=0.5,
    ),
    "ema": Advice(
        "Weight averaging",
        "Nearer to 1: steadier results that lag behind. Lower it for very short trainings.",
        step=0.001,
    ),
    "dice": Advice(
        "Dice weight",
        "Higher: small structures count more. Lower it when too much is marked as foreground.",
        step=0.1,
    ),
    "class_weights": Advice(
        "Class weights",
        "None: all pixels count alike. Balanced: rare structures count more, so that more of them is found, with more "
        "errors. Type none, balanced, or one number per class, such as 1, 4.",
    ),
    "flips": Advice(
        "Mirroring",
        "On: more variety from few labels. Turn it off only where left and right differ.",
    ),
    "rotation": Advice(
        "Rotation",
        "Higher: more variety from few labels. Lower it where the direction matters, as in layered tissue.",
        step=5,
    ),
    "scale": Advice(
        "Scaling",
        "Higher: copes with structures of other sizes. Lower it where the size tells structures apart.",
        step=0.05,
    ),
    "elastic": Advice(
        "Elastic",
        "Higher: more variety of shapes from few labels. Lower it where borders come out wavy.",
        step=0.5,
    ),
    "intensity": Advice(
        "Brightness, contrast",
        "Higher: copes with uneven staining and other microscopes. Lower it where grey values tell structures apart.",
        step=0.05,
    ),
    "zoom": Advice(
        "Zoom",
        "Higher: copes with other, or wrongly stated, pixel sizes. Leave it at 0 for images from one microscope.",
        step=0.25,
    ),
    "gamma": Advice(
        "Gamma",
        "Higher: copes with other staining and detectors. Raise it for a model to be used with other microscopes.",
        step=0.1,
    ),
    "local_contrast": Advice(
        "Local contrast",
        "Higher: copes with images that were equalised (CLAHE) or shade from side to side.",
        step=0.1,
    ),
    "inversion": Advice(
        "Inverted contrast",
        "Higher: more patches with bright and dark exchanged. Raise it where some images have bright mitochondria.",
        step=0.1,
    ),
    "blur": Advice(
        "Blur",
        "Higher: copes with images out of focus. Lower it where fine membranes tell structures apart.",
        step=0.25,
    ),
    "noise": Advice(
        "Noise",
        "Higher: copes with noisier images than those learnt from. Lower it where the results come out blurred.",
        step=0.1,
    ),
    "strips": Advice(
        "Blank strips",
        "Higher: more patches have blank strips, as in sections with missing lines.",
        step=0.1,
    ),
    "style": Advice(
        "Mixed styles",
        "Higher: patches take on the look of other images learnt from. It needs several images.",
        step=0.1,
    ),
    "slices": Advice(
        "Labelled slices",
        "Auto: slices that have any label. All: also those without, as background. Or type slice numbers, such as "
        "3, 8, 20:23.",
    ),
    "ignore": Advice(
        "Ignored label",
        "Pixels of this label count neither as background nor as structure.",
    ),
    "volume_weights": Advice(
        "Weight of each image",
        "How often each of several images is used. It changes nothing here, as a panel trains on one image.",
    ),
    "val_share": Advice(
        "Validation share",
        "Higher: a more reliable score, but fewer labels to learn from. 0: learns from all labels, and the score is "
        "then measured on these same labels.",
        step=0.05,
    ),
    "val_slices": Advice(
        "Validation slices",
        "Higher: a more reliable score, but each validation takes longer.",
    ),
    "threshold": Advice(
        "Threshold",
        "Higher: marks only what the model is sure of. Lower: finds more. You can still move it later, in Segment.",
        step=0.05,
    ),
    "validations": Advice(
        "Validations",
        "Higher: the preview is updated more often, but more time goes into scoring.",
    ),
    "patience": Advice(
        "Patience",
        "Lower: the training ends sooner once the score no longer rises. Empty: it uses the whole budget.",
    ),
    "seed": Advice(
        "Seed",
        "Another number: another random start. Change it to see how much results differ by chance alone.",
    ),
    "device": Advice(
        "Device",
        "Auto takes a graphics card where there is one. Choose cpu when the card runs out of memory.",
    ),
    "precision": Advice(
        "Precision",
        "The 16-bit kinds are faster on recent graphics cards and need less memory; on most processors they "
        "are slower.",
    ),
    "threads": Advice(
        "Threads",
        "Higher: faster for large networks, slower for tiny ones. Lower it to keep the computer free for other work.",
    ),
    "memory": Advice(
        "Memory for slices",
        "Higher: learns from more of a large volume. Lower it when memory runs out.",
        step=0.5,
    ),
    "tau": Advice(
        "Temperature τ",
        "Higher: the student learns more of the teacher's doubts. 1: the teacher's probabilities as they are. Seldom "
        "worth touching.",
        step=0.5,
    ),
    "lam": Advice(
        "Teacher weight λ",
        "Higher: trusts the teacher more than the labels. Lower it when the teacher errs where you have "
        "labelled, raise it when labels are few or poor.",
        step=0.1,
    ),
    "mode": Advice(
        "Mode",
        "Best: soft with strokes or without labels, else mixed. Mixed: labels and teacher together. Soft: the teacher "
        "alone, where it knows more than your labels. Sequential: first the teacher, then your labels alone.",
    ),
    "soft_share": Advice(
        "Teacher's share",
        "Higher: longer with the teacher, shorter with the labels. Only in sequential mode.",
        step=0.05,
    ),
    "unlabelled_share": Advice(
        "Unlabelled share",
        "Higher: learns more from slices that only the teacher has seen. Lower it when the teacher errs there.",
        step=0.05,
    ),
    "teacher_views": Advice(
        "Teacher's views",
        "Higher: a slightly better teacher, which takes that many times as long.",
    ),
    "confidence": Advice(
        "Teacher's confidence",
        "Higher: learns more from what the teacher is sure of, less from its doubts. Raise it where the teacher does "
        "not know this kind of image.",
        step=0.5,
    ),
    "rounds": Advice(
        "Rounds",
        "Higher: the teacher teaches for a shorter time, and then the student its own answers, renewed in each round. "
        "It pays where the student outgrows its teacher: on a kind of image that neither knows.",
    ),
}

_DISTIL = {
    "k": Advice(
        "Channels k",
        "Higher: closer to the teacher, and slower. Lower: tiny and fast. Begin with 2, and raise it when the"
        " student scores far below its teacher.",
    ),
}


def advice_for(name: str, *, distil: bool = False) -> Advice:
    """Return the advice for the setting `name`, for a training or a distillation."""
    plain = Advice(name.replace("_", " ").capitalize(), "")
    return _DISTIL[name] if distil and name in _DISTIL else ADVICE.get(name, plain)
