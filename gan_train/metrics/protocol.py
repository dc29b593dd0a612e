"""Protocols: how a score was measured, and which scores may be compared. Pure functions.

A distance says nothing by itself: it depends on the data set, the feature network and its weights,
the resize in front of it, and the number of images N. All of these are stored beside every score.
"""

from __future__ import annotations

from collections.abc import Mapping

from gan_train.errors import UserError

Protocol = dict[str, str | int]
"""`data` is the content hash of the shards; `extractor`, `weights` (SHA-256) and `resize` describe
the feature network; `images` is N; `reference` says with which real images the generated ones are
compared; `null_images` is the number of images on each side of the null value. `latents` is the
sequence of latents: 0 for the scores by which checkpoints are chosen, 1 for those that are
reported; records of earlier versions of this project, which knew only the first, lack it, and so do
tasks that take pictures. Path lengths add
`path_length_images`, `path_length_epsilon`, `perceptual`, `perceptual_resize` and
`perceptual_weights` (SHA-256)."""

_DIFFERENCES = {
    "data": "data sets",
    "extractor": "feature extractors",
    "weights": "weights of the feature extractor",
    "resize": "resize filters or sizes",
    "images": "numbers of images",
    "reference": "reference images",
    "latents": "latents",
}
_WHERE_LACKING: dict[str, int] = {"latents": 0}


def comparable(a: Mapping[str, str | int], b: Mapping[str, str | int]) -> str | None:
    """Why scores under the protocols a and b must not be compared; None when they may be."""
    for key, what in _DIFFERENCES.items():
        ours, theirs = (side.get(key, _WHERE_LACKING.get(key)) for side in (a, b))
        if ours != theirs:
            return f"different {what} ({_short(ours)} and {_short(theirs)})"
    return None


def refuse_unless_comparable(a: Mapping[str, str | int], b: Mapping[str, str | int]) -> None:
    """Raise UserError when scores under the protocols a and b must not be compared."""
    reason = comparable(a, b)
    if reason is not None:
        raise UserError(
            f"these scores cannot be compared: {reason}; score both with the same shards and the "
            "same `evaluate` settings"
        )


def _short(value: str | int | None) -> str:
    """The value as text; long text, such as a digest, is cut."""
    text = "not recorded" if value is None else str(value)
    return text if len(text) < 40 else f"{text[:12]}..."
