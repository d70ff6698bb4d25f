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
        "On: small networks train reliably. Touch it only to compare with the paper, which trains without.",
    ),
    "depth": Advice(
        "Depth",
        "Higher: sees more around each pixel, and is larger. Lower it for images smaller than some 100 pixels.",
    ),
    "classes": Advice(
        "Classes",
        "Leave at 2 for one structure and background; raise it when your labels hold several structures, 1, 2, 3 …",
    ),
    "context": Advice(
        "Context",
        "0: each slice by itself. Higher: sees the slices below and above too, which tells what one slice leaves "
        "open; slower, and it needs volumes. Try 1 where slices are well aligned; a 2-Unet gained nothing.",
    ),
    "context_distance": Advice(
        "Context distance",
        "Leave at 0 for the next slices. Larger: looks further; where slices are some nm apart the next one shows "
        "little that is new.",
        step=5,
    ),
    "boundary": Advice(
        "Outlines as a class",
        "On: objects that touch come apart in Objects; the mask is as good. Label each with its own id for it.",
    ),
    "activation": Advice(
        "Activation",
        "Touch it only to compare with the paper, which uses relu.",
    ),
    "init": Advice(
        "Initial weights",
        "Touch it only when trainings of the same settings come out very differently.",
    ),
    "prior_bias": Advice(
        "Bias from prior",
        "On: the first steps do not go into learning that most pixels are background.",
    ),
    "steps": Advice(
        "Steps",
        "Empty: the minutes count. A number ends the training after so many steps, however long they take: "
        "for comparisons.",
        step=100,
    ),
    "minutes": Advice(
        "Minutes",
        "More is better, with less and less to gain. Pauses do not count. Without meaning where steps are given.",
        step=1,
    ),
    "batch": Advice(
        "Batch size",
        "Higher: steadier and slower steps, more memory. Lower it when memory is out.",
    ),
    "patch": Advice(
        "Patch side",
        "Higher: sees more around each pixel, slower steps, more memory. Lower it when memory is out; a "
        "multiple of 16.",
    ),
    "pixel_size": Advice(
        "Working pixel size",
        "Larger: faster, sees more around each pixel, loses fine detail. Smaller: the reverse. Lower it for "
        "structures of few pixels.",
        step=1,
    ),
    "lr": Advice(
        "Learning rate",
        "Higher: learns faster, and can jump about or collapse. Lower it when the loss jumps, raise it when "
        "it hardly falls.",
        step=0.0001,
    ),
    "schedule": Advice(
        "Schedule",
        "One-cycle suits a training with an end; constant one that you stop yourself.",
    ),
    "weight_decay": Advice(
        "Weight decay",
        "Higher: keeps weights small, against learning few labels by heart. Seldom worth touching.",
        step=0.001,
    ),
    "warmup": Advice(
        "Warm-up share",
        "Higher: a gentler start. Raise it when the loss explodes in the first steps.",
        step=0.05,
    ),
    "clip": Advice(
        "Gradient clipping",
        "Lower: single bad patches do less harm, learning is slower. Seldom worth touching.",
        step=0.5,
    ),
    "ema": Advice(
        "Weight averaging",
        "Nearer to 1: steadier results that lag behind. Lower it for very short trainings.",
        step=0.001,
    ),
    "dice": Advice(
        "Dice weight",
        "Higher: cares more for small structures. Lower it when too much is called foreground.",
        step=0.1,
    ),
    "class_weights": Advice(
        "Class weights",
        "None counts all pixels alike; balanced counts a rare structure more, which finds more of it and errs"
        " more. Type none, balanced, or one number a class, such as 1, 4.",
    ),
    "flips": Advice(
        "Mirroring",
        "On: every label teaches several times. Turn it off only where left and right differ.",
    ),
    "rotation": Advice(
        "Rotation",
        "Higher: more variety from few labels. Lower it where the direction matters, as in layered tissue.",
        step=5,
    ),
    "scale": Advice(
        "Scaling",
        "Higher: copes with other sizes. Lower it where the size tells structures apart.",
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
        "Higher: copes with images of other pixel sizes, also if stated wrongly. Leave it at 0 for one microscope.",
        step=0.25,
    ),
    "gamma": Advice(
        "Gamma",
        "Higher: copes with other staining and detectors. Raise it where the model is to go to other microscopes.",
        step=0.1,
    ),
    "local_contrast": Advice(
        "Local contrast",
        "Higher: copes with images that were equalised (CLAHE) or shade from side to side.",
        step=0.1,
    ),
    "inversion": Advice(
        "Inverted contrast",
        "Higher: more patches are turned bright to dark. Raise it where some images have bright mitochondria.",
        step=0.1,
    ),
    "blur": Advice(
        "Blur",
        "Higher: copes with images out of focus. Lower it where fine membranes tell structures apart.",
        step=0.25,
    ),
    "noise": Advice(
        "Noise",
        "Higher: copes with noisier images than those learnt from. Lower it where training comes out blurred.",
        step=0.1,
    ),
    "strips": Advice(
        "Blank strips",
        "Higher: more patches have strips without an image, as in sections with lost lines.",
        step=0.1,
    ),
    "style": Advice(
        "Mixed styles",
        "Higher: patches take on the look of other images learnt from. It needs several images.",
        step=0.1,
    ),
    "slices": Advice(
        "Labelled slices",
        "Auto takes slices with any label; all also those without, as background. Or their numbers, such as "
        "3, 8, 20:23.",
    ),
    "ignore": Advice(
        "Ignored label",
        "Pixels of this label count neither as background nor as structure.",
    ),
    "volume_weights": Advice(
        "Weight of each image",
        "How often each of several images is drawn from; a panel trains on one.",
    ),
    "val_share": Advice(
        "Validation share",
        "Higher: a surer score, fewer labels to learn from. 0 learns from all, and the score then is that of "
        "the labels themselves.",
        step=0.05,
    ),
    "val_slices": Advice(
        "Validation slices",
        "Higher: a surer score, and each validation takes longer.",
    ),
    "threshold": Advice(
        "Threshold",
        "Empty: the best on validation. Higher: marks only what is sure. It can be moved afterwards, in Segment.",
        step=0.05,
    ),
    "validations": Advice(
        "Validations",
        "Higher: the preview follows more closely, and more time goes into scoring.",
    ),
    "patience": Advice(
        "Patience",
        "Lower: ends early when the score no longer rises. Empty: uses the whole budget.",
    ),
    "seed": Advice(
        "Seed",
        "Another number: another draw of luck. Change it to see how much of a difference is chance.",
    ),
    "device": Advice(
        "Device",
        "Auto takes a graphics card where there is one. Choose cpu when its memory is out.",
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
        "Higher: more of a large volume is learnt from. Lower it when memory is out.",
        step=0.5,
    ),
    "tau": Advice(
        "Temperature τ",
        "Higher: the student hears more of the teacher's doubts. 1: its probabilities as they are. Empty: 1 where the "
        "teacher alone speaks, else 4. Seldom worth touching.",
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
        "Best: soft with strokes or without labels, else mixed. Mixed: labels and teacher alike; soft: the teacher "
        "alone, where it knows more; sequential ends on your labels alone.",
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
        "Higher: a slightly better teacher, and so many times slower to ask.",
    ),
    "confidence": Advice(
        "Teacher's confidence",
        "Higher: learns more from what the teacher is sure of, less from its doubts. Raise it where the teacher does "
        "not know this kind of image.",
        step=0.5,
    ),
}

_DISTIL = {
    "k": Advice(
        "Channels k",
        "Higher: closer to the teacher, and slower. Lower: tiny and fast. Begin with 2, and raise it when the"
        " student stays far below its teacher.",
    ),
}


def advice_for(name: str, *, distil: bool = False) -> Advice:
    """Return the advice for the setting `name`, for a training or a distillation."""
    plain = Advice(name.replace("_", " ").capitalize(), "")
    return _DISTIL[name] if distil and name in _DISTIL else ADVICE.get(name, plain)
