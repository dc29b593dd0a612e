"""What may stand in an address: the query of each picture, as types that FastAPI checks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gan_train.images.origin import Command, Origin
from gan_train.inference import Generator
from gan_train.sampling.mixing import layer_numbers
from gan_train.sampling.painter import Look, Painter, class_number, labels
from gan_train.sampling.seeds import LARGEST_SEED, seeds
from gan_train.sampling.wishes import Wish, check
from pipelines.serving.limits import MOST_IMAGES, most_images

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


class _Query(BaseModel):
    """An unknown name is refused: a misspelt option would be ignored silently."""

    model_config = ConfigDict(extra="forbid")


class Drawn(_Query):
    """What all drawn pictures have in common."""

    label: str | None = Field(None, alias="class", max_length=500)
    truncation: float = Field(1.0, ge=-2, le=2, allow_inf_nan=False)

    def _wish(self, generator: Generator, seed: int) -> Wish:
        """Without a class, it is the first, as `gan-train generate` has it for one seed."""
        label = 0 if self.label is None else class_number(generator, self.label)
        return Wish(seed, label, self.truncation)

    def origin(
        self, generator: Generator, command: Command = "generate", **made_with: Any
    ) -> Origin:
        """What the picture says of itself. A single one has a class in any case, as its wish."""
        label = self.label
        if label is None and generator.conditional and "columns" not in made_with:
            label = generator.shape.classes[0]
        classes = None if label is None else [label]
        return generator.origin(command, classes=classes, truncation=self.truncation, **made_with)


class One(Drawn):
    """One image."""

    seed: Seed = 0

    def wishes(self, generator: Generator) -> list[Wish]:
        """Raises UserError for what the generator does not have."""
        return _checked(generator, [self._wish(generator, self.seed)])


class Grid(Drawn):
    """A grid of images."""

    seeds: str = Field("0-15", max_length=1000)
    columns: int | None = Field(None, ge=1, le=MOST_IMAGES)

    def wishes(self, generator: Generator) -> list[Wish]:
        """Without a class, all classes in turn, as `gan-train generate` has it. Raises UserError
        for what the generator does not have, and for too many images."""
        found = seeds(self.seeds, "--seeds", most_images(generator))
        classes = labels(generator, self.label, len(found))
        numbers = [0] * len(found) if classes is None else classes.tolist()
        return _checked(
            generator,
            [Wish(s, number, self.truncation) for s, number in zip(found, numbers, strict=True)],
        )


class Mix(Drawn):
    """The image of `seed`, with the styles of the seed `with` in some layers."""

    seed: Seed = 0
    other: Seed = Field(1, alias="with")
    layers: str = Field("coarse", max_length=1000)

    def wishes(self, generator: Generator) -> list[Wish]:
        """Raises UserError for what the generator does not have."""
        count = Painter(generator, Look()).space("mix").num_ws
        one = self._wish(generator, self.seed)
        layers = tuple(layer_numbers(self.layers, count))
        mixed = Wish(one.seed, one.label, one.truncation, self.other, layers)
        return _checked(generator, [mixed])


class Converted(_Query):
    """A picture that is sent, and the domain that a translation makes of it."""

    to: Literal["A", "B"] | None = None


def _checked(generator: Generator, wishes: list[Wish]) -> list[Wish]:
    for wish in wishes:
        check(generator, wish)
    return wishes
