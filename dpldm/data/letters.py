"""Letters: the capitals A to J of many open fonts, turned, scaled and shifted at random, made the same everywhere.

The fonts are those of `PACKAGES`, in Debian's main section: all free to use, change and pass on (SIL Open Font License,
GUST Font License, Bitstream Vera, Apache 2.0, or GPL, most with the exception for what is set in a font); each package
says which in `/usr/share/doc/<package>/copyright`. No font is passed on here, only images of letters.

They are drawn by the FreeType that Pillow's wheels carry, from numbers that follow from a seed. The checksums were made
on Debian 12, x86-64; where fonts or rounding are others, they tell, and nothing is kept.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from PIL import Image, ImageFont

from dpldm.data.fetch import idx_bytes, unpacked
from dpldm.data.images import DataError

_NAMES = """
adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius adf-irianis adf-libris adf-mekanus adf-oldania
adf-romande adf-solothurn adf-switzera adf-tribun adf-universalis adf-verana arapey beteckna breip cabin cardo
comfortaa courier-prime crosextra-caladea crosextra-carlito dejavu-core dejavu-extra dkg-handwriting dosis dustin
ebgaramond fanwood freefont-otf georgewilliams gfs-artemisia gfs-didot gfs-neohellenic goudybookletter hack havana
humor-sans inconsolata isabella johnsmith-induni joscelyn jura klaudia-berenika kristi lato league-spartan lindenhill
linuxlibertine lobster lobstertwo monofur okolaks oldstandard open-sans oxygen paratype play prociono quicksand
radisnoir roboto-unhinted rufscript sil-gentium-basic texgyre tiresias tlwg-kinnari-otf tlwg-laksaman-otf
tlwg-loma-otf tlwg-mono-otf tlwg-norasi-otf tlwg-purisa-otf tlwg-sawasdee-otf tlwg-typist-otf tlwg-umpush-otf
tlwg-waree-otf tuffy vollkorn yanone-kaffeesatz
"""
PACKAGES = tuple(f"fonts-{name}" for name in _NAMES.split())
LETTERS = "ABCDEFGHIJ"
SIDE, COUNTS = 28, (30_000, 6_000)  # pixels; images to train with and to test on
_EM, _FINER = 96, 4  # pixels: of the drawn letter; and how much finer than the image it is turned and scaled

_DOWNLOAD = 39_219_400  # bytes of the packages, for a progress bar

Glyphs = list[Image.Image]  # one for each of LETTERS, cut to the ink


def give(sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    """Draws the raw files of the set, as a `dpldm.data.fetch.Source` does, after downloading the fonts."""
    with unpacked(PACKAGES, _DOWNLOAD) as folder:
        fonts = [path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf")]
        paths = [path for path in fonts if not path.is_symlink()]
        faces = split(read_fonts((path.name, path.read_bytes()) for path in paths))
    for seed, (prefix, count) in enumerate(zip(("train", "t10k"), COUNTS, strict=True)):
        images, labels = draw(faces["test" if seed else "train"], count, seed)
        files = {f"{prefix}-images-idx3-ubyte": images, f"{prefix}-labels-idx1-ubyte": labels}
        yield from ((name, idx_bytes(values)) for name, values in files.items() if name in sizes)


def read_fonts(files: Iterable[tuple[str, bytes]]) -> dict[str, list[Glyphs]]:
    """Family → its faces, from (file name, content) of font files; a face that lacks a letter is passed over."""
    families: dict[str, dict[str, Glyphs]] = {}
    for _, content in sorted(files):
        try:
            font = ImageFont.truetype(io.BytesIO(content), _EM, layout_engine=ImageFont.Layout.BASIC)
            glyphs = [_glyph(font, letter) for letter in LETTERS]
        except (OSError, ValueError):
            continue
        family, style = (str(name) for name in font.getname())
        if len({(glyph.size, glyph.tobytes()) for glyph in glyphs}) == len(LETTERS):
            families.setdefault(family, {}).setdefault(style, glyphs)
    return {family: [faces[style] for style in sorted(faces)] for family, faces in sorted(families.items())}


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    mask = font.getmask(letter)
    if min(mask.size) < 2:
        raise ValueError(f"no {letter} in this font")
    glyph = Image.frombytes("L", mask.size, bytes(mask))
    box = glyph.getbbox()
    if box is None:
        raise ValueError(f"an empty {letter} in this font")
    return glyph.crop(box)


def split(families: dict[str, list[Glyphs]]) -> dict[str, list[Glyphs]]:
    """The faces to train with and to test on: every fifth family, by name, is kept for the test whole."""
    if len(families) < 5:
        raise DataError(f"expected at least 5 families of fonts, got {len(families)}: give more fonts")
    faces: dict[str, list[Glyphs]] = {"train": [], "test": []}
    for position, family in enumerate(sorted(families)):
        faces["test" if position % 5 == 4 else "train"] += families[family]
    return faces


def draw(faces: Sequence[Glyphs], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """White letters on black, uint8 (count, 28, 28), and their classes, uint8 (count,).

    Each has a face at random, a longer side of 17 to 22 pixels, a turn of up to about 14°, and lies up to 2 pixels off
    the middle. Turns are drawn as tangents, so that sines and cosines are exact quotients.
    """
    random = np.random.RandomState(seed)
    images, labels = np.empty((count, SIDE, SIDE), np.uint8), np.empty(count, np.uint8)
    for position in range(count):
        face, letter, side, tangent, *shift = (
            int(random.randint(low, high))
            for low, high in ((0, len(faces)), (0, len(LETTERS)), (170, 221), (-125, 126), (-20, 21), (-20, 21))
        )
        images[position] = _placed(faces[face][letter], side, Fraction(tangent, 1000), shift)
        labels[position] = letter
    return images, labels


def _placed(glyph: Image.Image, tenths: int, tangent: Fraction, shift: Sequence[int]) -> np.ndarray:
    """One image. ``tenths``: of a pixel, the longer side. ``tangent``: of half the angle. ``shift``: tenths."""
    cosine, sine = (1 - tangent**2) / (1 + tangent**2), 2 * tangent / (1 + tangent**2)
    unit = Fraction(10 * max(glyph.size), _FINER * tenths)  # pixels of the glyph for one of the finer image
    middle = [Fraction(SIDE * _FINER, 2) + Fraction(_FINER * moved, 10) for moved in shift]
    rows = ((cosine, sine), (-sine, cosine))
    matrix: list[float] = []
    for (across, down), size in zip(rows, glyph.size, strict=True):
        start = Fraction(size, 2) - unit * (across * middle[0] + down * middle[1])
        matrix += [float(unit * across), float(unit * down), float(start)]
    finer = (SIDE * _FINER, SIDE * _FINER)
    turned = glyph.transform(finer, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(turned.resize((SIDE, SIDE), Image.Resampling.BOX))
