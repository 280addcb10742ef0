"""Things: small pictures in colour of ten kinds of things, each with its own proportions, colours and light.

Nothing is downloaded: they follow from a seed. All arithmetic is in whole numbers, so that the bytes, and with them the
checksums, are the same everywhere. A thing is described in a frame of its own, from -1000 to 1000 both ways with y
downwards; each image sees that frame turned, moved and at another size.
"""

from collections.abc import Callable, Iterator

import numpy as np

from dpldm.data.fetch import idx_bytes

CLASSES = ("ball", "bottle", "box", "car", "fish", "house", "lamp", "mug", "tree", "umbrella")
COUNTS = 20_000, 4_000  # images to train with and to test on
_FINER = 3  # how much finer than the image a thing is drawn, both ways

Colour = tuple[int, int, int]
Range = tuple[int, int]

_WARM: tuple[Colour, ...] = ((190, 50, 40), (220, 120, 40), (230, 180, 60), (160, 90, 120))
_COOL: tuple[Colour, ...] = ((40, 80, 160), (60, 140, 170), (90, 90, 100), (30, 120, 110))
_EARTH: tuple[Colour, ...] = ((150, 110, 70), (190, 160, 120), (120, 70, 50), (170, 140, 90))
_GREEN: tuple[Colour, ...] = ((50, 110, 50), (90, 140, 50), (40, 90, 70), (130, 150, 60))
_DARK: Colour = (50, 45, 50)
_GLASS: Colour = (180, 210, 225)


def give(side: int) -> Callable[[dict[str, int]], Iterator[tuple[str, bytes]]]:
    """What draws the raw files of the set at ``side`` pixels, as a `dpldm.data.fetch.Source` does."""

    def files(sizes: dict[str, int]) -> Iterator[tuple[str, bytes]]:
        for seed, (prefix, count) in enumerate(zip(("train", "t10k"), COUNTS, strict=True)):
            images, labels = draw(count, side, seed)
            made = {f"{prefix}-images-idx4-ubyte": images, f"{prefix}-labels-idx1-ubyte": labels}
            yield from ((name, idx_bytes(values)) for name, values in made.items() if name in sizes)

    return files


def draw(count: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Things on a light ground, uint8 (count, side, side, 3), and their classes, uint8 (count,), at random."""
    random = np.random.RandomState(seed)  # its numbers never change
    images, labels = np.empty((count, side, side, 3), np.uint8), np.empty(count, np.uint8)
    for position in range(count):
        labels[position] = random.randint(len(CLASSES))
        images[position] = _picture(_THINGS[labels[position]], side, random)
    return images, labels


def _picture(thing: "Callable[[_Canvas], None]", side: int, random: np.random.RandomState) -> np.ndarray:
    canvas = _Canvas(side * _FINER, random)
    thing(canvas)
    blocks = canvas.pixels.reshape(side, _FINER, side, _FINER, 3)
    return (blocks.sum((1, 3)) + _FINER**2 // 2) // _FINER**2


class _Canvas:
    """What a thing is painted on, and whatever is random about it. ``x``, ``y``: where each pixel lies in its frame."""

    def __init__(self, side: int, random: np.random.RandomState) -> None:
        self.random = random
        half_tangent, percent = self.number(-140, 141), self.number(58, 86)  # up to 16 degrees; of the image
        cosine, sine, unit = 10**6 - half_tangent**2, 2_000 * half_tangent, 10**6 + half_tangent**2
        across = (2 * np.arange(side, dtype=np.int64) + 1 - side)[None, :]
        down, scale, size = across.T, 1_000 * 100, unit * side * percent
        self.x = (cosine * across + sine * down) * scale // size - self.number(-120, 121)
        self.y = (cosine * down - sine * across) * scale // size - self.number(-120, 121)
        ground = self.near((245, 243, 240), 10)
        self.pixels = np.empty((side, side, 3), np.int64)
        self.pixels[:] = ground

    def number(self, low: int, high: int) -> int:
        """A whole number from ``low`` to below ``high``."""
        return int(self.random.randint(low, high))

    def near(self, colour: Colour, most: int = 25) -> Colour:
        red, green, blue = (min(255, max(0, part + self.number(-most, most + 1))) for part in colour)
        return red, green, blue

    def one_of(self, colours: tuple[Colour, ...]) -> Colour:
        return self.near(colours[self.number(0, len(colours))])

    # -- shapes: which pixels lie in them ------------------------------------------------------------------------------

    def ellipse(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Around (x, y); half of its width and height are given."""
        inside: np.ndarray = ((self.x - x) * height) ** 2 + ((self.y - y) * width) ** 2 <= (width * height) ** 2
        return inside

    def box(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        inside: np.ndarray = (left <= self.x) & (self.x <= right) & (top <= self.y) & (self.y <= bottom)
        return inside

    def polygon(self, *corners: tuple[int, int]) -> np.ndarray:
        """A convex one; its corners follow each other clockwise as one sees them."""
        inside = np.ones_like(self.x, bool)
        for (x, y), (to_x, to_y) in zip(corners, (*corners[1:], corners[0]), strict=True):
            inside &= (to_x - x) * (self.y - y) - (to_y - y) * (self.x - x) >= 0
        return inside

    def pattern(self) -> np.ndarray:
        """Nothing, stripes, checks or dots, everywhere."""
        period, kind = self.number(220, 420), self.number(0, 5)
        if kind == 0:
            return self.y // period % 2 == 0
        if kind == 1:
            return (self.x + self.y) // period % 2 == 0
        if kind == 2:
            return (self.x // period + self.y // period) % 2 == 0
        if kind == 3:
            across, down = self.x % period - period // 2, self.y % period - period // 2
            return across**2 + down**2 <= (period // 4) ** 2
        return np.zeros_like(self.x, bool)

    def paint(self, where: np.ndarray, colour: Colour) -> None:
        """Fill a shape; the light comes from above and from the left."""
        light = (1_000 - (self.x[where] + self.y[where]) // 8)[:, None]
        self.pixels[where] = np.clip(np.array(colour, np.int64) * light // 1_000, 0, 255)

    def decorate(self, where: np.ndarray, colours: tuple[Colour, ...]) -> None:
        """The same in one colour, with a pattern of another."""
        self.paint(where, self.one_of(colours))
        self.paint(where & self.pattern(), self.one_of(colours))


def _ball(canvas: _Canvas) -> None:
    size = canvas.number(650, 900)
    round_part = canvas.ellipse(0, 0, size, size)
    canvas.decorate(round_part, _WARM + _COOL)
    band = canvas.number(80, 200)
    canvas.paint(round_part & canvas.box(-1_000, -band, 1_000, band), canvas.one_of(_WARM + _COOL))


def _bottle(canvas: _Canvas) -> None:
    wide, shoulder = canvas.number(250, 400), canvas.number(-350, 0)
    colour = canvas.one_of((*_GREEN, *_COOL))
    canvas.paint(canvas.box(-wide, shoulder, wide, 950), colour)
    canvas.paint(canvas.ellipse(0, shoulder, wide, wide), colour)
    neck = wide // 3
    canvas.paint(canvas.box(-neck, -850, neck, shoulder), colour)
    canvas.paint(canvas.box(-neck - 30, -950, neck + 30, -820), canvas.near(_DARK))
    canvas.decorate(canvas.box(-wide, 250, wide, canvas.number(550, 800)), _WARM)


def _box(canvas: _Canvas) -> None:
    wide, top, depth = canvas.number(500, 700), canvas.number(-500, -200), canvas.number(200, 350)
    front, edge = canvas.one_of(_EARTH), wide + depth
    canvas.paint(canvas.polygon((-wide, top), (depth - wide, top - depth), (edge, top - depth), (wide, top)), front)
    red, green, blue = front
    side = (red * 7 // 10, green * 7 // 10, blue * 7 // 10)
    canvas.paint(canvas.polygon((wide, top), (edge, top - depth), (edge, 850 - depth), (wide, 850)), side)
    canvas.paint(canvas.box(-wide, top, wide, 850), front)
    tape = canvas.number(60, 140)
    canvas.paint(canvas.box(-tape, top, tape, 850), canvas.one_of(_WARM + _COOL))


def _car(canvas: _Canvas) -> None:
    roof, colour = canvas.number(-450, -250), canvas.one_of(_WARM + _COOL)
    front, back = canvas.number(350, 550), canvas.number(450, 650)
    canvas.paint(canvas.polygon((-back, 50), (150 - back, roof), (front - 200, roof), (front, 50)), colour)
    canvas.paint(canvas.polygon((60 - back, 50), (180 - back, roof + 80), (front - 230, roof + 80), (front - 80, 50)),
                 canvas.near(_GLASS))  # fmt: skip
    canvas.paint(canvas.box(-950, 50, 950, 430), colour)
    for x in (-500, 500):
        canvas.paint(canvas.ellipse(x, 430, 230, 230), canvas.near(_DARK, 10))
        canvas.paint(canvas.ellipse(x, 430, 100, 100), canvas.near(_GLASS))


def _fish(canvas: _Canvas) -> None:
    long, high = canvas.number(600, 750), canvas.number(280, 450)
    tail = canvas.number(250, 420)
    fin = canvas.one_of(_WARM + _COOL)
    canvas.paint(canvas.polygon((long - 150, 0), (950, -tail), (950, tail)), fin)
    canvas.paint(canvas.polygon((-200, -high + 60), (100, -high - 220), (250, -high + 120)), fin)
    canvas.decorate(canvas.ellipse(-100, 0, long, high), _WARM + _COOL)
    canvas.paint(canvas.ellipse(-100 - long * 3 // 5, -high // 4, 70, 70), canvas.near(_DARK, 10))


def _house(canvas: _Canvas) -> None:
    wide, eaves = canvas.number(550, 780), canvas.number(-250, 0)
    canvas.paint(canvas.box(-wide, eaves, wide, 850), canvas.one_of((*_EARTH, (225, 215, 200))))
    canvas.decorate(canvas.polygon((-wide - 120, eaves), (0, -900), (wide + 120, eaves)), _WARM)
    canvas.paint(canvas.box(-140, 350, 140, 850), canvas.one_of(_COOL))
    for x in (-wide + 120, wide - 380):
        canvas.paint(canvas.box(x, eaves + 150, x + 260, eaves + 400), canvas.near(_GLASS))


def _lamp(canvas: _Canvas) -> None:
    above, below, low = canvas.number(200, 400), canvas.number(500, 750), canvas.number(-200, 50)
    metal = canvas.near((110, 105, 100))
    canvas.paint(canvas.box(-50, low, 50, 850), metal)
    canvas.paint(canvas.ellipse(0, 870, canvas.number(300, 480), 90), metal)
    canvas.decorate(canvas.polygon((-below, low), (-above, -850), (above, -850), (below, low)), (*_WARM, *_EARTH))


def _mug(canvas: _Canvas) -> None:
    wide, top = canvas.number(420, 560), canvas.number(-650, -350)
    grip = canvas.number(200, 300)
    handle = canvas.ellipse(wide, 120, grip + 120, grip + 160) & ~canvas.ellipse(wide, 120, grip, grip + 20)
    colours = _WARM + _COOL
    canvas.paint(handle, canvas.one_of(colours))
    canvas.decorate(canvas.box(-wide, top, wide, 750) | canvas.ellipse(0, 750, wide, 120), colours)
    canvas.paint(canvas.ellipse(0, top, wide, 130), canvas.near(_DARK))


def _tree(canvas: _Canvas) -> None:
    trunk = canvas.number(70, 150)
    canvas.paint(canvas.box(-trunk, 200, trunk, 950), canvas.one_of(_EARTH))
    if canvas.number(0, 2):
        for level in range(3):
            half, top = 350 + 150 * level, -950 + 380 * level
            canvas.paint(canvas.polygon((-half, top + 620), (0, top), (half, top + 620)), canvas.one_of(_GREEN))
    else:
        for _ in range(5):
            x, y, size = canvas.number(-350, 351), canvas.number(-600, 0), canvas.number(300, 480)
            canvas.paint(canvas.ellipse(x, y, size, size), canvas.one_of(_GREEN))


def _umbrella(canvas: _Canvas) -> None:
    wide, rim = canvas.number(750, 950), canvas.number(-150, 50)
    canvas.paint(canvas.box(-40, rim, 40, 800), canvas.near(_DARK))
    hook = (
        canvas.ellipse(120, 800, 160, 150) & ~canvas.ellipse(120, 800, 80, 70) & canvas.box(-1_000, 800, 1_000, 1_000)
    )
    canvas.paint(hook, canvas.near(_DARK))
    canvas.decorate(canvas.ellipse(0, rim, wide, rim + 900) & canvas.box(-1_000, -1_000, 1_000, rim), _WARM + _COOL)


_THINGS = (_ball, _bottle, _box, _car, _fish, _house, _lamp, _mug, _tree, _umbrella)
