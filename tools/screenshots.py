"""Take pictures of the built pages, wide and narrow, and tell what the browser's console says. To be run by hand:

    .venv/bin/python tools/screenshots.py [DOCUMENT ...]      # by default all documents of _toc.yml

A Chromium or Chrome must be installed (Debian: `apt install chromium`). The pages are opened as files, and every name
on the network is unknown to the browser: what needs the network shows as missing.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from build import HTML, ROOT, table_of_contents
from matplotlib.image import imread, imsave

WIDTHS = (1400, 400)
LONGEST_SHOT = 16_000  # pixels that the browser takes at once; a longer page takes several shots
PICTURE_HEIGHT = 1600  # a long page becomes several pictures, each to be seen at full size
FLAGS = [
    *"--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update".split(),
    *"--disable-sync --hide-scrollbars --virtual-time-budget=15000 --enable-logging=stderr".split(),
    "--allow-file-access-from-files",  # the frame below must know how high its page is
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
FRAME = """<body style="margin:0; background:#fff; overflow:hidden">
<iframe src="{url}" width="{width}" height="900" style="border:0; position:absolute; top:-{top}px"
onload="setTimeout(() => this.height = this.contentDocument.documentElement.scrollHeight, 5000)"></iframe>"""
HARMLESS = ("invalid theme mode", "[PST]", "[togglebutton]")  # what the theme always says


def browser() -> str:
    """Path of an installed Chromium or Chrome."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    sys.exit("No Chromium or Chrome found: install one (Debian: apt install chromium).")


def look(page: Path, width: int) -> tuple[np.ndarray, list[str]]:
    """Pixels of the whole page, (height, width, channels), and the messages on the console."""
    shots, more = [], True
    while more:
        pixels, messages = shoot(page, width, top=len(shots) * LONGEST_SHOT)
        rows = np.flatnonzero((pixels != pixels[-1]).any(axis=(1, 2)))
        more = len(rows) and rows[-1] >= LONGEST_SHOT - 200  # what a page leaves empty at its end is cut off
        shots.append(pixels if more else pixels[: rows[-1] + 1] if len(rows) else pixels[:1])
    return np.concatenate(shots), [line for line in messages if not any(text in line for text in HARMLESS)]


def shoot(page: Path, width: int, top: int) -> tuple[np.ndarray, list[str]]:
    """Pixels of the page from `top` on, and the messages on the console.

    The page stands in a frame, since the browser's own window has a least width and a page fills its whole height.
    """
    with tempfile.TemporaryDirectory() as folder:
        frame, picture = Path(folder, "frame.html"), Path(folder, "page.png")
        frame.write_text(FRAME.format(url=page.as_uri(), width=width, top=top), "utf-8")
        size = f"--window-size={max(width, 800)},{LONGEST_SHOT}"
        command = [browser(), *FLAGS, f"--user-data-dir={folder}/profile", size, f"--screenshot={picture}"]
        log = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=300, check=True).stderr
        pixels = imread(picture)[:, :width]
    return pixels, [line.partition("CONSOLE")[2] for line in log.splitlines() if "CONSOLE" in line]


def main() -> None:
    folder = ROOT / "_build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or table_of_contents():
        for width in WIDTHS:
            pixels, messages = look(HTML / f"{name}.html", width)
            for number, top in enumerate(range(0, len(pixels), PICTURE_HEIGHT), start=1):
                picture = folder / f"{name.replace('/', '-')}-{width}-{number}.png"
                imsave(picture, pixels[top : top + PICTURE_HEIGHT])
                print(picture)
            print(*(f"  console{message}" for message in messages), sep="\n", end="")


if __name__ == "__main__":
    main()
