"""What `segment` gives: labels, and the forms in which other programs want them."""

import dataclasses
import io
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from dsolo_jax import draw, images
from dsolo_jax.utils.checks import choose
from dsolo_jax.utils.extras import extra
from dsolo_jax.utils.files import write_json

if TYPE_CHECKING:
    import supervision


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """A picture's labels, with what they mean and what they were made of.

    labels: int32 [H, W], index of a class for each pixel.
    scores: float32 [C, H, W], if they were asked for.
    classes: names, by index.
    pixels: uint8 [H, W, 3], the picture as it was read.
    """

    labels: Int[np.ndarray, "H W"]
    scores: Float[np.ndarray, "C H W"] | None
    classes: tuple[str, ...]
    pixels: UInt8[np.ndarray, "H W 3"]

    def __repr__(self) -> str:
        height, width = self.labels.shape
        shares = sorted(self.shares().items(), key=lambda pair: -pair[1])
        present = ", ".join(f"{name} {share:.1%}" for name, share in shares if share)
        return f"Result({height} x {width}: {present})"

    def masks(self) -> dict[str, Bool[np.ndarray, "H W"]]:
        """Gives where each class is; a class that is nowhere has a mask too, which is read-only."""
        nowhere, present = np.broadcast_to(False, self.labels.shape), set(self._present())
        return {
            name: self.labels == c if c in present else nowhere
            for c, name in enumerate(self.classes)
        }

    def shares(self) -> dict[str, float]:
        """Gives the share of the pixels that each class has; together 1."""
        return dict(zip(self.classes, (self._areas() / self.labels.size).tolist(), strict=True))

    def overlay(self, opacity: float = 0.55, hidden: Collection[str] = ()) -> Image.Image:
        """Draws the picture under the classes' colours with a legend, see `draw.overlay`."""
        return draw.overlay(self.pixels, self.labels, self.classes, opacity=opacity, hidden=hidden)

    def save(
        self,
        folder: str | os.PathLike,
        name: str = "picture",
        what: Sequence[str] = ("overlay", "mask", "json"),
    ) -> list[Path]:
        """Writes files into a folder, each atomically, and says which.

        Args:
            name: of the picture, without a suffix.
            what: of `FILES`: "overlay" <name>.png, "mask" masks/<name>.png, the index of each
                pixel's class, with the classes' colours as palette; "json" <name>.json, colour and
                share of each class; "coco" coco/<name>.json, see `to_coco`; "labelme"
                labelme/<name>.json, see `to_labelme`.

        Raises:
            ValueError: another word. ImportError: "coco" without pycocotools. OSError: as of
                writing.
        """
        kinds = [FILES[choose("what", one, FILES)] for one in what]
        paths = [Path(folder) / pattern.format(name=name) for pattern, _ in kinds]
        for path, (_, write) in zip(paths, kinds, strict=True):
            write(self, path)
        return paths

    def polygons(self) -> dict[str, list[list[Float[np.ndarray, "_ 2"]]]]:
        """Gives the outlines of each class that is present, in (x, y), a pixel's corner being 0.

        Of each connected part a list: its outer ring, then those of its holes; closed, the first
        point is not repeated. They run through the middles of the pixels' edges, so that just the
        centres of the class's pixels lie inside, and a rasteriser gives the mask back.
        """
        return {self.classes[c]: _rings(self.labels == c) for c in self._present()}

    def to_coco(
        self, image_id: int = 1, file_name: str = "", *, polygons: bool = False
    ) -> dict[str, Any]:
        """Gives the result as a COCO dataset of one picture: images, categories, annotations.

        An annotation is all of a class that is present. Category ids are the labels. Segmentations
        are compressed run lengths (RLE), or polygons, whose holes are joined to their outlines by
        edges there and back: under the even-odd rule, pycocotools', both give the mask exactly.

        Raises:
            ImportError: pycocotools is missing.
        """
        coco = extra("pycocotools.mask", "formats")
        outlines = self.polygons() if polygons else {}
        annotations = []
        for number, c in enumerate(self._present(), 1):
            mask = self.labels == c
            code = coco.encode(np.asfortranarray(mask, np.uint8))
            form: Any = {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}
            if polygons:
                joined = (_joined(rings) for rings in outlines[self.classes[c]])
                form = [ring.ravel().tolist() for ring in joined]
            annotations.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": c,
                    "segmentation": form,
                    "area": int(mask.sum()),
                    "bbox": [float(side) for side in coco.toBbox(code)],
                    "iscrowd": 0,
                }
            )
        height, width = self.labels.shape
        return {
            "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
            "categories": [{"id": c, "name": name} for c, name in enumerate(self.classes)],
            "annotations": annotations,
        }

    def to_labelme(self, file_name: str = "") -> dict[str, Any]:
        """Gives the result as labelme keeps it: polygons of each class, holes as of `to_coco`."""
        shapes = [
            {
                "label": name,
                "points": _joined(rings).tolist(),
                "group_id": None,
                "shape_type": "polygon",
                "flags": {},
            }
            for name, parts in self.polygons().items()
            for rings in parts
        ]
        height, width = self.labels.shape
        return {
            "version": "5.0.0",  # of labelme's format, unchanged since
            "flags": {},
            "shapes": shapes,
            "imagePath": file_name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }

    def to_detections(self) -> "supervision.Detections":
        """Gives the classes that are present as `supervision.Detections`, one each.

        Raises:
            ImportError: supervision is missing.
        """
        supervision = extra("supervision", "formats")
        present = self._present()
        masks = np.stack([self.labels == c for c in present])
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
            mask=masks,
            class_id=np.array(present),
            data={"class_name": np.array([self.classes[c] for c in present])},
        )

    def _repr_png_(self) -> bytes:
        """Shows the overlay in notebooks."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()

    def _areas(self) -> Int[np.ndarray, "C"]:
        return np.bincount(self.labels.ravel(), minlength=len(self.classes))

    def _present(self) -> list[int]:
        return np.flatnonzero(self._areas()).tolist()


def _save_overlay(result: Result, path: Path) -> None:
    images.write_png(path, result.overlay())


def _save_mask(result: Result, path: Path) -> None:
    images.write_png(path, result.labels, draw.palette(len(result.classes)))


def _save_json(result: Result, path: Path) -> None:
    height, width = result.labels.shape
    colours = draw.palette(len(result.classes)).tolist()
    classes = [
        {"name": name, "label": label, "colour": colours[label], "share": share}
        for label, (name, share) in enumerate(result.shares().items())
    ]
    write_json(path, {"height": height, "width": width, "classes": classes})


# What `save` can write: where, and how.
FILES = {
    "overlay": ("{name}.png", _save_overlay),
    "mask": ("masks/{name}.png", _save_mask),
    "json": ("{name}.json", _save_json),
    "coco": ("coco/{name}.json", lambda result, path: write_json(path, result.to_coco())),
    "labelme": ("labelme/{name}.json", lambda result, path: write_json(path, result.to_labelme())),
}


def _rings(mask: Bool[np.ndarray, "H W"]) -> list[list[Float[np.ndarray, "_ 2"]]]:
    """Rings around the pixels of a mask: the half-way contour between their centres and others'."""
    import contourpy  # late: matplotlib's own

    padded = np.pad(mask, 1).astype(np.float64)
    form = contourpy.FillType.OuterOffset
    filled = contourpy.contour_generator(z=padded, fill_type=form).filled(0.5, 1.5)
    parts = []
    for points, offsets in zip(*filled, strict=True):
        rings = np.split(points - 0.5, offsets[1:-1])  # a centre is half a pixel in, less padding
        parts.append([ring[:-1] for ring in rings])  # contourpy repeats the first point
    return parts


def _joined(rings: Sequence[Float[np.ndarray, "_ 2"]]) -> Float[np.ndarray, "_ 2"]:
    """One ring around a part with holes: out to each hole and back again."""
    outer, *holes = rings
    if not holes:
        return outer
    start = outer[:1]
    around = [np.concatenate([hole, hole[:1], start]) for hole in holes]
    return np.concatenate([outer, start, *around[:-1], around[-1][:-1]])
