"""Draw what Promenade looks like: its people as twins, and its scenes as twins with their boxes.

python tools/draw_promenade.py --out docs/images
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from faap.promenade import compose
from faap.promenade.people import colour, load_people
from faap.promenade.scenes import HEIGHT, WIDTH

COLOURS = np.array([[224, 172, 140], [60, 40, 28], [190, 60, 60], [60, 70, 120], [45, 45, 45]], float)


def people_sheet(columns: int = 16, rows: int = 5) -> Image.Image:
    """The first identities, woman and man side by side."""
    people = load_people()
    cell, gap = 72, 6
    sheet = Image.new("RGB", (columns * cell, rows * (people.height + gap)), "white")
    for i in range(columns * rows // 2):
        for twin, group in enumerate(("female", "male")):
            sprite = Image.fromarray(colour(people.sprite(i // people.views, i % people.views, group), COLOURS))
            at = 2 * i + twin
            left, top = at % columns * cell + (cell - sprite.width) // 2, at // columns * (people.height + gap)
            sheet.paste(sprite, (left, top), sprite)
    return sheet


def scene_sheet(pairs_across: int = 3, rows: int = 3, scale: int = 2) -> Image.Image:
    """Test scenes, the women's version left of the men's, with the annotated boxes."""
    margin = 8
    wide = 2 * WIDTH * scale + margin
    sheet = Image.new(
        "RGB", (pairs_across * (wide + margin) - margin, rows * (HEIGHT * scale + margin) - margin), "white"
    )
    for pair in range(pairs_across * rows):
        for twin, group in enumerate(("female", "male")):
            scene = compose(0, "test", pair, group)
            image = Image.fromarray(scene.image).resize((WIDTH * scale, HEIGHT * scale), Image.Resampling.NEAREST)
            draw = ImageDraw.Draw(image)
            for x, y, w, h in scene.boxes * scale:
                draw.rectangle((x, y, x + w, y + h), outline=(240, 228, 66), width=1)
            left = pair % pairs_across * (wide + margin) + twin * WIDTH * scale
            sheet.paste(image, (left, pair // pairs_across * (HEIGHT * scale + margin)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    people_sheet().quantize(64).save(args.out / "people.png", optimize=True)
    scene_sheet().save(args.out / "scenes.jpg", quality=88)


if __name__ == "__main__":
    main()
