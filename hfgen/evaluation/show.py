"""Pictures of what a model can do, each for a capability: samples, steps, walks, edits, nearest training images,
reconstructions, restored images."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm.auto import tqdm

from hfgen.evaluation.config import PICTURES, TOWARDS, ShowConfig, SplitsConfig
from hfgen.evaluation.features import Extractor
from hfgen.evaluation.neighbours import nearest_neighbours
from hfgen.evaluation.reference import Part, open_reference
from hfgen.evaluation.resize import as_channels
from hfgen.evaluation.trained import as_images, following, is_source, read_record, recorded_sources
from hfgen.pipelines.diffusion_restoration import to_gray
from hfgen.runtime.errors import UserError, one_line
from hfgen.runtime.files import write_text
from hfgen.runtime.png import gray_like, make_table, to_uint8
from hfgen.runtime.seeds import image_seed
from hfgen.runtime.writable import OURS
from hfgen.sampling import latents
from hfgen.sampling.capabilities import Adapter, Encodes, Generates, HasLatents, HasSteps, Restores, Translates, evenly
from hfgen.sampling.sampler import Sampler

FRAMES = 10  # of a row of a walk, a traversal or the steps
PLACES = 9  # of a latent that is changed
LEG = 12  # frames of the GIF of a walk from one seed to the next
NOTED = 40  # steps of a GIF
REST = 1500  # milliseconds of the last step of a GIF
LARGE = 256  # pixels: to what the image of a GIF is enlarged
SAMPLES = 40  # images, about
MOST_CLASSES = 20  # in a picture
DRAWN = 3  # ways to fill a hole
VARIED = (0.3, 0.5, 0.7)  # strengths
ENCODED = 512  # real images whose latents directions are learnt from
USUAL_SEEDS, EDITED_SEEDS = 4, 2  # unless seeds are given; the latter in the picture of edits
USUAL_DIRECTIONS, USUAL_CLASSES = 4, 3
AT_ONCE = 16  # images that are generated together
REAL_AT_ONCE = 1024  # training images that are compared together


@dataclass(frozen=True)
class Real:
    """Real images.

    Attributes:
        part ([`~reference.Part`]): To encode and to damage: held-out ones, where the data has some.
        train ([`~reference.Part`]): All that the model was trained on, or may have been.
        trained (`bool`): Whether the record of the training says that it was trained on these.
        named (`bool`): Whether the user named them.
    """

    part: Part
    train: Part
    trained: bool
    named: bool

    @property
    def title(self) -> str:
        """What to call them."""
        info = self.part.data.info
        return f"{info.name} [{info.split}]"


def open_real(config: SplitsConfig, name: str, image_shape: tuple[int, int, int], column: str | None = None) -> Real:
    """Opens the data that is named, else the data that the model was trained on.

    Args:
        config ([`SplitsConfig`]): The data.
        name (`str`): The model's folder or Hub id.
        image_shape (`tuple[int, int, int]`): Channels, height and width of its images, to which real ones are brought.
        column (`str`, *optional*): The name that its training has for the images, if it has several.

    Raises:
        UserError: If no data is named and the training is not known, or the data cannot be read.
    """
    named = config.dataset_name or config.train_data_dir
    trained = read_record(name).get("config")
    if not named:
        if trained is None:
            raise UserError(
                f"what {name} was trained on is not known, as it has no record of its training: name the data with "
                "`dataset_name` or `train_data_dir`"
            )
        own = recorded_sources(name) if column is not None else {}
        if column in own:
            config = as_images(own[column], config)
        else:
            source = {key: trained.get(key) for key in ("dataset_name", "dataset_config_name", "train_data_dir")}
            usual = SplitsConfig().dataset_split
            split = trained.get("dataset_split") if config.dataset_split == usual else config.dataset_split
            config = dataclasses.replace(config, **source, dataset_split=split or usual)
    reference = open_reference(following(config, name), image_shape, 0, 10**9)
    part, data = reference.held_out, reference.train.data
    everything = Part(data, np.arange(len(data)))
    is_trained = bool(trained) and is_source(config, trained or {})
    return Real(everything if part.data is data else part, everything, is_trained, bool(named))


@dataclass(frozen=True)
class Picture:
    """A picture to write.

    Attributes:
        file (`str`): Its name.
        text (`str`): What it shows, in Markdown.
        frames (`list[PIL.Image.Image]`): One image, or those of a GIF.
        real (`bool`): Whether real images are in it.
        rest (`int`): Milliseconds that the last image of a GIF stays longer than the others.
    """

    file: str
    text: str
    frames: list[Image.Image]
    real: bool = False
    rest: int = 0


class Gallery:
    """Makes the pictures of a model.

    Args:
        adapter ([`~sampling.capabilities.Adapter`]): The model.
        name (`str`): What to call it in a message.
        config ([`ShowConfig`]): What to show.
        options: The model's own sampling options.
        class_labels (`Sequence[str]`, *optional*): The classes to make, by number or name.
        real ([`Real`] or `str`): Real images; or why there are none.
        extractor ([`~features.Extractor`], *optional*): In whose features images are compared; by default by pixels.
        features_of_training (`Callable`, *optional*): Makes the features `(M, D)` of all training images, with an
            extractor.

    Raises:
        UserError: For options that do not fit the model.
    """

    def __init__(
        self,
        adapter: Any,
        name: str,
        config: ShowConfig,
        options: Any = None,
        class_labels: Sequence[str] | None = None,
        real: Real | str = "no data is named",
        extractor: Extractor | None = None,
        features_of_training: Callable[[Part], torch.Tensor] | None = None,
    ):
        self.adapter, self.name, self.config, self.real = adapter, name, config, real
        self.extractor, self.features_of_training = extractor, features_of_training
        self.options = adapter.options() if options is None else options
        self.device = adapter.pipe.device
        self.sampler: Sampler | None = None
        if adapter.obstacle(Generates) is None:
            self.sampler = Sampler(adapter, self.options, name, class_labels=class_labels)
        elif class_labels or config.seeds:
            option = "class_labels" if class_labels else "seeds"
            raise UserError(f"`{option}`: {name} {adapter.obstacle(Generates)}. Leave it out.")
        if config.factor and "super_resolve" in self.tasks and adapter.image_shape[1] % config.factor:
            raise UserError(f"`factor` {config.factor} does not divide the {adapter.image_shape[1]} pixels of images.")

    # What can be made

    def pictures(self) -> dict[str, tuple[type[Adapter], bool, Callable[[], Iterator[Picture]]]]:
        """Returns, for each kind of picture, the capability that it takes, whether it takes real images, and what
        makes it."""
        return {
            "samples": (Generates, False, self.samples),
            "neighbours": (Generates, True, self.neighbours),
            "steps": (HasSteps, False, self.steps),
            "walk": (Encodes, False, self.walk),
            "edits": (HasLatents, False, self.edits),
            "traversals": (HasLatents, False, self.traversals),
            "reconstructions": (Encodes, True, self.reconstructions),
            "interpolations": (Encodes, True, self.interpolations),
            "inpainting": (Restores, True, self.inpainting),
            "denoising": (Restores, True, self.denoising),
            "super_resolution": (Restores, True, self.super_resolution),
            "colorization": (Restores, True, self.colorization),
            "variations": (Restores, True, self.variations),
            "completion": (Restores, True, self.completion),
            "translations": (Translates, True, self.translations),
        }

    def obstacle(self, picture: str) -> str | None:
        """Says why a kind of picture cannot be made; `None` if it can."""
        capability, needs_real, _ = self.pictures()[picture]
        lack = self.adapter.obstacle(capability)
        if lack is None and capability is HasSteps:
            lack = self.adapter.obstacle(Generates)
        if lack is not None:
            return f"{self.name} {lack}"
        if capability is Restores and picture not in {RESTORED[task] for task in self.tasks}:
            return f"{self.name} cannot do that: it can {', '.join(self.tasks)}"
        if picture == "interpolations" and self.adapter.searches:
            return f"{self.name} finds latents by a search: see the walk between seeds"
        if needs_real and isinstance(self.real, str):
            return self.real
        if not needs_real and issubclass(capability, Encodes) and self.sampler is None and isinstance(self.real, str):
            return f"{self.name} {self.adapter.obstacle(Generates)}, and {self.real}"
        return None

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.adapter.tasks if self.adapter.obstacle(Restores) is None else ()

    # Seeds and real images

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of single images: those given, or those of the first images of the set."""
        return self.config.seeds or tuple(image_seed(self.config.seed, index) for index in range(USUAL_SEEDS))

    def labels(self, count: int) -> torch.Tensor | None:
        """Returns the classes of the images of the seeds: in turn; `None` where the model draws them."""
        return None if self.sampler is None else self.sampler.labels_of(count)

    def called(self, index: int, label: int | None) -> str:
        """Names an image of the seeds, and its class."""
        return f"seed {self.seeds[index]}" + self.of_class(label)

    def of_class(self, label: int | None) -> str:
        classes = self.adapter.classes
        if label is None or classes is None:
            return ""
        return f", {'group' if classes.groups else 'class'} {classes.names[label]}"

    @cached_property
    def starts(self) -> tuple[torch.Tensor, torch.Tensor | None, list[str]]:
        """Latents to begin with, their classes and names: of the seeds, or of real images where it draws none."""
        if self.sampler is None:
            images, classes = self.shown_real[0][:USUAL_SEEDS], self.real_classes
            classes = None if classes is None else classes[:USUAL_SEEDS]
            return self.adapter.encode(images, classes), classes, [f"image {i}" for i in range(len(images))]
        codes, labels = latents.draw_seeds(self.adapter, self.seeds, self.labels(len(self.seeds)), self.options)
        own = [None] * len(codes) if labels is None else labels.tolist()
        return codes, labels, [self.called(index, label) for index, label in enumerate(own)]

    @cached_property
    def shown_real(self) -> tuple[torch.Tensor, np.ndarray | None]:
        """Real images `(N, C, H, W)` in [0, 1] to show, and their classes as the data numbers them."""
        return self.pick(self.config.num_images)

    def pick(self, count: int) -> tuple[torch.Tensor, np.ndarray | None]:
        """Draws real images by the seed, without replacement."""
        assert isinstance(self.real, Real)
        part = self.real.part
        chosen = np.sort(np.random.default_rng(self.config.seed).permutation(len(part.rows))[:count])
        labels = part.data.labels
        images = (part.images(chosen).float() / 255).to(self.device)
        return images, None if labels is None else labels[part.rows[chosen]]

    @cached_property
    def real_classes(self) -> torch.Tensor | None:
        return self.classes_of(*self.shown_real)

    def classes_of(self, images: torch.Tensor, numbers: np.ndarray | None) -> torch.Tensor | None:
        """Returns the model's classes of real images; `None` for a model without.

        Raises:
            UserError: If they are not known.
        """
        classes = self.adapter.classes
        if classes is None:
            return None
        assert isinstance(self.real, Real)
        info = self.real.part.data.info
        if classes.groups:
            groups = self.adapter.classes_of(images) if isinstance(self.adapter, Encodes) else None
            if groups is None:
                raise UserError(
                    f"the classes of {self.name} are groups of images, and those of real images are not known"
                )
            return groups
        if numbers is None or info.class_names is None:
            raise UserError(f"{info.name} has no classes, which {self.name} needs: name `label_column`")
        # The data may number its classes in another way, or have some of them alone.
        found = np.array([*classes.numbers(info.class_names), -1])[numbers]
        if (found < 0).any():
            shown = {info.class_names[number] if number >= 0 else "none" for number in numbers[found < 0].tolist()}
            raise UserError(
                f"the images have the classes {', '.join(sorted(shown))}, and {self.name} knows "
                f"{', '.join(classes.names)}: give its own data with `dataset_name`"
            )
        return torch.from_numpy(found).to(self.device)

    # Pictures

    def table(
        self,
        rows: Sequence[torch.Tensor],
        row_titles: Sequence[str] = (),
        column_titles: Sequence[str] = (),
        captions: Sequence[Sequence[str]] = (),
    ) -> Image.Image:
        """Makes a labelled picture of rows of images `(N, C, H, W)` in [0, 1]: see [`make_table`]."""
        arrays = [list(to_uint8(row)) for row in rows]
        return make_table(arrays, row_titles, column_titles, captions, self.config.scale)

    def generated(self, indices: Sequence[int], seed: int) -> torch.Tensor:
        """Makes images of the set of a seed, uint8 `(N, C, H, W)`, some at a time."""
        assert self.sampler is not None
        parts = [indices[start : start + AT_ONCE] for start in range(0, len(indices), AT_ONCE)]
        bar = tqdm(parts, desc="images", leave=False, disable=None if len(parts) > 1 else True)
        return torch.cat([self.sampler(part, seed).cpu() for part in bar])

    @cached_property
    def made(self) -> tuple[list[int], torch.Tensor]:
        """The numbers of the first images of the set and these, uint8: row by row where there is a row for each class,
        else as many as are about a square."""
        assert self.sampler is not None
        classes = self.sampler.classes
        if classes:
            rows = min(len(classes), MOST_CLASSES)
            columns = min(max(2, SAMPLES // rows), self.config.num_images)
            numbers = [column * len(classes) + row for row in range(rows) for column in range(columns)]
        else:
            numbers = list(range(min(SAMPLES, 4 * self.config.num_images)))
        return numbers, self.generated(numbers, self.config.seed)

    def samples(self) -> Iterator[Picture]:
        assert self.sampler is not None
        numbers, images = self.made
        classes, names = self.sampler.classes, self.sampler.class_names
        text = f"the first images of seed {self.config.seed}, as `hfgen sample` makes them"
        titles: list[str] = []
        columns = min(10, len(images))
        if classes:
            titles = [names[number] for number in classes[:MOST_CLASSES]]
            columns = len(images) // len(titles)
            text += ", a row for each class"
            if len(classes) > len(titles):
                text += f"; the first {len(titles)} of {len(classes)} classes (`class_labels` chooses others)"
        rows = [images[start : start + columns] / 255 for start in range(0, len(images), columns)]
        yield Picture("samples.png", text, [self.table(rows, titles)])

    def neighbours(self) -> Iterator[Picture]:
        assert isinstance(self.real, Real) and self.sampler is not None
        _, images = self.made
        part = self.real.train
        distances, indices = self.nearest(images, part, 1)
        order = distances[:, 0].argsort(stable=True)[: self.config.num_images]
        near = part.images(indices[order, 0].tolist())
        apart = self.nearest(near, part, 2)[0][:, 1] if len(part.rows) > 1 else None
        pairs = [f"{value:.3g}" for value in distances[order, 0].tolist()]
        if apart is not None:
            pairs = [f"{pair} ({own:.3g})" for pair, own in zip(pairs, apart.tolist(), strict=True)]
        where = "training set" if self.real.trained else self.real.train.data.info.name
        by = "root mean square difference of pixels in [0, 1]"
        if self.extractor is not None:
            by = f"distance in the features of {self.extractor.id}"
        text = (
            f"of the {len(images)} images of `samples.png`, the {len(order)} that are nearest to one of the "
            f"{len(part.rows):,} images of {part.data.info.name} [{part.data.info.split}], nearest first, and below "
            f"each this image. The number is their {by}; in brackets, how far this image is from the nearest other "
            "one of the set. A made image that is much nearer than that may be a copy. One that is farther is none by "
            "this measure, which may miss copies that are shifted or recoloured"
        )
        rows = [images[order] / 255, near / 255]
        picture = self.table(rows, ["made", f"nearest in the {where}"], captions=[[], pairs])
        yield Picture("neighbours.png", text, [picture], real=True)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Computes what images, uint8, are compared by: features, or pixels in [0, 1] over white, so that distances
        are root mean squares."""
        if self.extractor is not None:
            return self.extractor(images)["features"].cpu()
        pixels = as_channels(images, 3) if images.shape[1] == 4 else images
        flat = pixels.flatten(1).float() / 255
        return flat / flat.shape[1] ** 0.5

    def nearest(self, images: torch.Tensor, part: Part, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Finds the nearest images of a part: distances and indices `(N, count)`. A part at a time, so that any number
        of images fits into the memory."""
        queries = self.features(images)
        known = None if self.features_of_training is None else self.features_of_training(part)
        best: list[torch.Tensor] = []
        starts = range(0, len(part.rows), REAL_AT_ONCE)
        for start in tqdm(starts, desc="training images", leave=False, disable=None if len(starts) > 1 else True):
            rows = list(range(start, min(start + REAL_AT_ONCE, len(part.rows))))
            references = self.features(part.images(rows)) if known is None else known[rows]
            distances, indices = nearest_neighbours(queries, references, min(count, len(rows)))
            found = [distances, (indices + start).to(distances)]
            best = [torch.cat(pair, dim=1) for pair in zip(best, found, strict=True)] if best else found
            order = best[0].argsort(dim=1, stable=True)[:, :count]
            best = [each.gather(1, order) for each in best]
        return best[0], best[1].long()

    def steps(self) -> Iterator[Picture]:
        seeds = self.seeds[:USUAL_SEEDS]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        labels = self.labels(len(seeds))
        text, steps = self.adapter.steps(generators, labels, self.options, NOTED)
        own = [None] * len(seeds) if labels is None else labels.tolist()
        chosen = [steps[number] for number in evenly(len(steps), FRAMES)]
        rows, titles = [], []
        for index, label in enumerate(own):
            for kind in steps[0].images:
                rows.append(torch.stack([step.images[kind][index] for step in chosen]))
                titles.append(self.called(index, label) + (f": {kind}" if len(steps[0].images) > 1 else ""))
        yield Picture("steps.png", text, [self.table(rows, titles, [step.title for step in chosen])])
        kinds = list(steps[0].images) if len(steps[0].images) > 1 else []
        frames = [self.table(list(step.images.values()), kinds, [step.title]) for step in steps]
        yield Picture("steps.gif", "the same, one after another", frames, rest=REST)

    def walk(self) -> Iterator[Picture]:
        codes, labels, names = self.starts
        if len(codes) < 2:
            raise UserError("a walk needs two ends: give more `seeds`")
        legs = [(index, (index + 1) % len(codes)) for index in range(len(codes) if len(codes) > 2 else 1)]
        rows = [self.leg(index, end, FRAMES, self.class_at(labels, index)) for index, end in legs]
        titles = []
        for index, end in legs:
            first, _, of_class = names[index].partition(",")
            second = names[end].partition(",")[0].split()[-1]
            titles.append(f"{first} to {second}" + (f",{of_class}" if of_class else ""))
        text = "from one seed to the next through the latents" + (
            "; a row keeps the class of its first image" if labels is not None else ""
        )
        if self.sampler is None:
            text = "from one real image to the next through the latents"
        yield Picture("walk.png", text, [self.table(rows, titles)], real=self.sampler is None)
        one = self.class_at(labels, 0)
        frames: list[torch.Tensor] = []
        for index in range(len(codes)):
            frames += self.leg(index, (index + 1) % len(codes), LEG + 1, one)[:-1]
        kept = "" if one is None else f"; all of them{self.of_class(one).replace(',', ' are of')}"
        scale = self.config.scale or max(1, LARGE // max(self.adapter.image_shape[1:]))
        images = [make_table([[frame]], scale=scale) for frame in to_uint8(torch.stack(frames))]
        yield Picture("walk.gif", f"the same, through all of them and back{kept}", images, real=self.sampler is None)

    def class_at(self, labels: torch.Tensor | None, index: int) -> int | None:
        return None if labels is None else int(labels[index])

    def leg(self, start: int, end: int, frames: int, label: int | None) -> torch.Tensor:
        """Walks from one start to another, in one class."""
        codes, labels, _ = self.starts
        ends, both = codes[[start, end]], None
        if label is not None:
            both = torch.full((2,), label, device=self.device)
            if self.sampler is not None:
                ends, _ = latents.draw_seeds(self.adapter, [self.seeds[start], self.seeds[end]], both, self.options)
        return latents.walk(self.adapter, ends, frames, both)

    @cached_property
    def examples(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Latents, their images in [0, 1] and the classes of a conditional model, to learn from: of seeds, or where
        the model draws none, of real images."""
        if self.sampler is not None:
            return latents.draw_examples(self.adapter, self.options, self.config.seed)
        codes, images, classes, _ = self.encoded
        return codes, images, classes

    @cached_property
    def encoded(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, np.ndarray | None]:
        """Latents of many real images, these, their classes as the model numbers them, and as the data does."""
        images, numbers = self.pick(ENCODED)
        classes = self.classes_of(images, numbers)
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(images), AT_ONCE)]
        codes = [
            self.adapter.encode(images[part], None if classes is None else classes[part])
            for part in tqdm(parts, desc="latents", leave=False, disable=None)
        ]
        return torch.cat(codes), images, classes, numbers

    @cached_property
    def towards(self) -> dict[str, torch.Tensor]:
        """Directions towards the classes of the data, for a model without: half the way from the mean latents of all
        images to those of a class."""
        if self.adapter.classes is not None or self.adapter.searches or not isinstance(self.real, Real):
            return {}
        names = self.real.part.data.info.class_names
        if self.real.part.data.labels is None or not names:
            return {}
        codes, _, _, numbers = self.encoded
        groups = {name: codes[torch.from_numpy(numbers == number)] for number, name in enumerate(names)}
        present = {name: own for name, own in groups.items() if len(own)}
        if len(present) < 2:
            return {}
        return {name: (own.mean(0) - codes.mean(0)) / 2 for name, own in present.items()}

    def directions(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the directions that are asked for, with their titles.

        Raises:
            UserError: For one that the model does not have.
        """
        wanted = self.config.directions
        if not wanted:
            most = USUAL_DIRECTIONS
            while most:  # a model of very few latents has fewer
                try:
                    found = self.adapter.directions(most, lambda: self.examples)
                    break
                except ValueError:
                    most -= 1
            wanted = (*map(str, range(most)), *(TOWARDS + name for name in list(self.towards)[:USUAL_CLASSES]))
        numbers = [int(word) for word in wanted if not word.startswith(TOWARDS)]
        if numbers:
            try:
                found = self.adapter.directions(max(numbers) + 1, lambda: self.examples)
            except ValueError as error:
                raise UserError(
                    f"`directions` {max(numbers)} is unknown ({one_line(error)}): they begin with 0"
                ) from None
        for word in wanted:
            if not word.startswith(TOWARDS):
                yield f"direction {int(word)}", found[int(word)]
                continue
            name = word.removeprefix(TOWARDS)
            if name not in self.towards:
                known = ", ".join(TOWARDS + each for each in self.towards)
                raise UserError(
                    f"`directions` {word} is unknown: "
                    + (f"{self.name} has {known}" if known else f"{self.name} has none towards a class")
                    + ". Such directions need data with classes, and a model that is told none and encodes images"
                )
            yield f"towards {name}", self.towards[name]

    def edits(self) -> Iterator[Picture]:
        codes, labels, names = self.starts
        count = len(codes) if self.config.seeds else min(EDITED_SEEDS, len(codes))
        codes, labels = codes[:count], None if labels is None else labels[:count]
        rows, titles = [], []
        for title, direction in self.directions():
            edited = latents.edit(self.adapter, codes, direction, self.config.strengths, labels)
            rows += list(edited)
            titles += [f"{title}: {name}" for name in names[:count]]
        text = (
            f"the latents of {'a seed' if self.sampler else 'a real image'}, moved along a direction; above stands "
            "how far, and 0 is the image as it is. Direction 0 changes images most"
        )
        if self.towards and any(title.startswith("towards") for title in titles):
            text += "; towards a class, 2 is the way from the mean latents of all images to those of this class"
        columns = [f"{strength:+g}" if strength else "0" for strength in self.config.strengths]
        yield Picture("edits.png", text, [self.table(rows, titles, columns)], real=self.sampler is None)

    def traversals(self) -> Iterator[Picture]:
        codes, labels, names = self.starts
        flat = self.examples[0].flatten(1)
        middle, deviation = flat.mean(0), flat.std(0)
        widest = deviation.argsort(descending=True)[:FRAMES].tolist()
        first = None if labels is None else labels[:1]
        places = torch.linspace(-2, 2, PLACES).tolist()
        rows = []
        for index in widest:
            values = (middle[index] + deviation[index] * torch.tensor(places).to(middle)).tolist()
            rows.append(latents.traverse(self.adapter, codes[:1], index, values, first)[0])
        text = (
            f"{names[0]}, with one number of its latents changed in each row: those of the {len(widest)} that vary "
            "most, from 2 standard deviations below their mean to 2 above it"
        )
        columns = [f"{place:+g}" if place else "0" for place in places]
        picture = self.table(rows, [f"latent {index}" for index in widest], columns)
        yield Picture("traversals.png", text, [picture], real=self.sampler is None)

    def column_titles(self) -> list[str]:
        """Returns the names of the classes of the real images that are shown."""
        assert isinstance(self.real, Real)
        names, numbers = self.real.part.data.info.class_names, self.shown_real[1]
        if not names or numbers is None:
            return []
        return [names[number] if number >= 0 else "-" for number in numbers.tolist()]

    def of_real(self, file: str, text: str, titles: list[str], rows: list[torch.Tensor]) -> Picture:
        """Makes a picture of real images and what was made of them."""
        assert isinstance(self.real, Real)
        text = f"{len(rows[0])} images of {self.real.title}: {text}"
        return Picture(f"{file}.png", text, [self.table(rows, titles, self.column_titles())], real=True)

    @cached_property
    def real_codes(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.config.seed)
        return self.adapter.encode(self.shown_real[0], self.real_classes, generator)

    def reconstructions(self) -> Iterator[Picture]:
        images = self.shown_real[0]
        made = latents.decode(self.adapter, self.real_codes, self.real_classes)
        how = "found by a search for the nearest image" if self.adapter.searches else "encoded and decoded again"
        error = (to_pixels(made) - to_pixels(images)).square().mean().sqrt().item()
        text = f"below each what the model makes of it, {how}"
        text += f". The root mean square difference of pixels in [0, 1] is {error:.3f}"
        yield self.of_real("reconstructions", text, ["image", "reconstruction"], [images, made])

    def interpolations(self) -> Iterator[Picture]:
        images, classes = self.shown_real[0], self.real_classes
        if len(images) < 2:
            raise UserError("a walk needs two images: use more data")
        pairs = [slice(first, first + 2) for first in range(0, len(images) - 1, 2)]
        rows = [
            latents.walk(self.adapter, self.real_codes[pair], FRAMES, None if classes is None else classes[pair])
            for pair in pairs
        ]
        text = "from the reconstruction of a real image, on the left, to that of another"
        yield Picture("interpolations.png", text, [self.table(rows)], real=True)

    def restored(self, task: str, damaged: torch.Tensor, generator: torch.Generator, **settings: Any) -> torch.Tensor:
        kinds = self.adapter.classes
        known = kinds is not None and not (kinds.groups and not isinstance(self.adapter, Encodes))
        if self.config.steps is not None and "steps" in self.adapter.restore_settings(task):
            settings = {"steps": self.config.steps, **settings}
        return self.adapter.restore(task, damaged, self.real_classes if known else None, generator, **settings)

    def hole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a mask of the lower half, and the real images with it in gray."""
        images = self.shown_real[0]
        hole = torch.zeros(images.shape[-2:], dtype=torch.bool, device=images.device)
        hole[images.shape[-2] // 2 :] = True
        return hole, torch.where(hole, gray_like(images), images)

    def inpainting(self) -> Iterator[Picture]:
        generator = torch.Generator().manual_seed(self.config.seed)
        images, (hole, holed) = self.shown_real[0], self.hole()
        rows, titles = [images, holed], ["image", "with a hole"]
        if self.adapter.likeliest:
            rows.append(self.restored("inpaint", images, generator, mask=hole))
            titles.append("likeliest filling")
        for number in range(DRAWN if self.sampler is not None else 0):  # without a prior nothing is drawn
            rows.append(self.restored("inpaint", images, generator, mask=hole, **self.adapter.drawing))
            titles.append(f"drawn filling {number + 1}")
        yield self.of_real("inpainting", "the lower half taken out, and filled", titles, rows)

    def completion(self) -> Iterator[Picture]:
        generator = torch.Generator().manual_seed(self.config.seed)
        images, (hole, holed) = self.shown_real[0], self.hole()
        rows, titles = [images, holed], ["image", "what is given"]
        for number in range(DRAWN):
            rows.append(self.restored("complete", images, generator, mask=hole))
            titles.append(f"completed {number + 1}")
        yield self.of_real("completion", "the lower half drawn anew, pixel by pixel, several times", titles, rows)

    def colorization(self) -> Iterator[Picture]:
        generator = torch.Generator().manual_seed(self.config.seed)
        images = self.shown_real[0]
        gray = to_gray(images)
        rows, titles = [images, self.in_gray(gray)], ["image", "in gray"]
        for number in range(DRAWN):
            rows.append(self.restored("colorize", gray, generator))
            titles.append(f"colours {number + 1}")
        yield self.of_real("colorization", "colours taken away, and drawn several times", titles, rows)

    @staticmethod
    def in_gray(gray: torch.Tensor) -> torch.Tensor:
        return torch.cat([gray[:, :1].expand(-1, 3, -1, -1), gray[:, 1:]], 1)

    def variations(self) -> Iterator[Picture]:
        images = self.shown_real[0]
        rows, titles = [images], ["image"]
        for strength in VARIED:
            generator = torch.Generator().manual_seed(self.config.seed)
            rows.append(self.restored("img2img", images, generator, strength=strength))
            titles.append(f"strength {strength:g}")
        yield self.of_real("variations", "noise added to images, the more the stronger, and taken away", titles, rows)

    @property
    def level(self) -> float | None:
        """The level of the damage that a model for one task was trained on."""
        level = self.adapter.pipe.config.get("task_level")
        return None if level is None or len(self.tasks) != 1 else float(level)

    def denoising(self) -> Iterator[Picture]:
        generator = torch.Generator().manual_seed(self.config.seed)
        images, level = self.shown_real[0], self.level or self.config.noise_level
        noise = torch.randn(images.shape, generator=generator).to(images)
        noisy = images + level * noise
        rows = [images, noisy, self.restored("denoise", noisy, generator, noise_level=level)]
        text = f"with normal noise of deviation {level:g}, and cleaned"
        yield self.of_real("denoising", text, ["image", "with noise", "cleaned"], rows)

    def super_resolution(self) -> Iterator[Picture]:
        generator = torch.Generator().manual_seed(self.config.seed)
        images, size = self.shown_real[0], self.adapter.image_shape[1]
        factor = int(self.level or self.config.factor or next(each for each in range(2, size + 1) if size % each == 0))
        if size % factor:
            raise UserError(f"{factor} does not divide the {size} pixels of images")
        small = F.avg_pool2d(images, factor)
        rows = [images, F.interpolate(small, scale_factor=factor), self.restored("super_resolve", small, generator)]
        text = f"{factor} times smaller, and enlarged again"
        yield self.of_real("super_resolution", text, ["image", f"{factor} times smaller", "enlarged"], rows)

    def translations(self) -> Iterator[Picture]:
        images = self.shown_real[0]
        generators = [torch.Generator().manual_seed(image_seed(self.config.seed, i)) for i in range(len(images))]
        rows = [images, self.adapter.translate(images, generators, self.options)]
        yield self.of_real("translations", "below each its translation", ["image", "translation"], rows)

    def make(self) -> Iterator[tuple[str, list[Picture] | str]]:
        """Makes the pictures that were asked for, or all that the model can; shows how far it is.

        Yields:
            `tuple[str, list[Picture] | str]`: The kind, and its pictures, or why there are none.

        Raises:
            UserError: If one that was asked for cannot be made, or none at all.
        """
        asked = self.config.pictures
        kinds = [kind for kind in PICTURES if not asked or kind in asked]
        reasons = {kind: self.obstacle(kind) for kind in kinds}
        for kind, reason in reasons.items():
            if asked and reason is not None:
                raise UserError(f"`pictures` {kind}: {reason}.")
        possible, last = [kind for kind in kinds if reasons[kind] is None], ""
        made = 0
        with tqdm(total=len(possible), unit="picture", disable=None) as bar:
            for kind in kinds:
                reason = reasons[kind]
                if reason is None:
                    bar.set_description(kind)
                    try:
                        pictures = list(self.pictures()[kind][2]())
                    except UserError as error:
                        # What was given has to fit; what was chosen here may fail for data that was not made for it.
                        if asked or error.field in self.given:
                            raise
                        reason = last = one_line(error)
                    bar.update()
                if reason is not None:
                    yield kind, reason
                    continue
                made += 1
                yield kind, pictures
        if not made:
            raise UserError(f"`model` {self.name} has nothing to show: {last or next(iter(reasons.values()))}.")

    @property
    def given(self) -> set[str]:
        """The options that were given, as far as a picture may not suit them."""
        fields = dataclasses.fields(self.config)
        named = {"dataset_name", "label_column"} if isinstance(self.real, Real) and self.real.named else set()
        return named | {field.name for field in fields if getattr(self.config, field.name) != field.default}


FILES = ("README.md", *(f"{kind}.png" for kind in PICTURES), "steps.gif", "walk.gif")
RESTORED = {
    "inpaint": "inpainting",
    "denoise": "denoising",
    "super_resolve": "super_resolution",
    "colorize": "colorization",
    "img2img": "variations",
    "complete": "completion",
}


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Returns what is seen of images in [0, 1]: transparent ones over white."""
    if images.shape[1] != 4:
        return images
    return images[:, :3] * images[:, 3:] + 1 - images[:, 3:]


def write_page(folder: Path, name: str, a_kind: str, pictures: Sequence[Picture]) -> Path:
    """Writes the page that explains the pictures of a folder. What an older page says of others that are still there
    is kept.

    Returns:
        `Path`: The page.
    """
    path = folder / "README.md"
    new = {picture.file: section(picture) for picture in pictures}
    old = {}
    if path.exists():
        for part in path.read_text(encoding="utf-8").split("\n## ")[1:]:
            file = part.split("\n", 1)[0].strip()
            if Path(file).name == file and (folder / file).is_file():
                old[file] = f"## {part.rstrip()}\n"
    sections = old | new
    order = sorted(sections, key=lambda file: [*PICTURES, Path(file).stem].index(Path(file).stem))
    head = f"{OURS} show -->\n# What {name} does\n\nPictures of {a_kind}, made by `hfgen show`.\n"
    write_text(path, "\n".join([head, *(sections[file] for file in order)]))
    return path


def section(picture: Picture) -> str:
    text = picture.text[:1].upper() + picture.text[1:]
    return f"## {picture.file}\n\n{text}.\n\n![{picture.file}]({picture.file})\n"
