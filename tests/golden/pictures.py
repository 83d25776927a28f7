"""Small pictures in every form that JPEG, WebP and PNG have, and what Pillow makes of them.

    python -m venv venv && venv/bin/pip install pillow==13.0.0 numpy
    venv/bin/python tests/golden/pictures.py          # needs cjpeg (libjpeg-turbo-progs) and convert (imagemagick)

Writes tests/golden/pictures/: the files, and expected.json with the SHA-256 of the bytes of
`ImageOps.exif_transpose(image).convert("RGB")`, the upright size, or the error that Pillow raises.
"""

import hashlib
import json
import pathlib
import subprocess

import numpy as np
from PIL import Image, ImageOps, ImageSequence

OUT = pathlib.Path(__file__).parent / "pictures"
RNG = np.random.default_rng(16)


def picture(width, height):
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / 5 + y / 9), 127 + 120 * np.cos(x / 7 - y / 4), (x * 7 + y * 3) % 256]
    noisy = np.stack(waves, -1) + RNG.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype("uint8"))


def run(tool, *arguments, stdin=None):
    return subprocess.run([tool, *arguments], input=stdin, capture_output=True, check=True).stdout


def cjpeg(name, ppm, *arguments):
    (OUT / name).write_bytes(run("cjpeg", "-quality", "75", *arguments, stdin=ppm))


def ppm_of(image):
    header = f"P6 {image.width} {image.height} 255\n".encode()
    return header + image.tobytes()


def write_jpegs():
    odd = picture(37, 29)
    ppm = ppm_of(odd)
    samplings = {
        "444": "1x1,1x1,1x1", "422": "2x1,1x1,1x1", "420": "2x2,1x1,1x1", "440": "1x2,1x1,1x1",
        "411": "4x1,1x1,1x1", "441": "1x4,1x1,1x1", "3x1": "3x1,1x1,1x1", "mixed": "2x2,1x2,2x1",
    }
    for name, sampling in samplings.items():
        cjpeg(f"{name}.jpg", ppm, "-sample", sampling)
    cjpeg("progressive_420.jpg", ppm, "-progressive", "-sample", samplings["420"])
    cjpeg("progressive_444.jpg", ppm, "-progressive", "-sample", samplings["444"])
    cjpeg("restarts.jpg", ppm, "-restart", "2B", "-sample", samplings["420"])
    cjpeg("arithmetic.jpg", ppm, "-arithmetic", "-sample", samplings["420"])
    cjpeg("rgb.jpg", ppm, "-rgb")
    cjpeg("gray.jpg", ppm, "-grayscale")
    cjpeg("coarse.jpg", ppm, "-quality", "5", "-sample", samplings["420"])
    cjpeg("one_pixel.jpg", ppm_of(picture(1, 1)))
    cjpeg("narrow.jpg", ppm_of(picture(3, 50)), "-sample", samplings["420"])
    odd.convert("CMYK").save(OUT / "cmyk.jpg", quality=75)
    run("convert", "ppm:-", "-colorspace", "CMYK", "-sampling-factor", "2x2", str(OUT / "ycck.jpg"), stdin=ppm)
    whole = (OUT / "420.jpg").read_bytes()
    (OUT / "cut_in_the_head.jpg").write_bytes(whole[: len(whole) // 4])
    (OUT / "cut.jpg").write_bytes(whole[: len(whole) * 7 // 8])
    (OUT / "without_end.jpg").write_bytes(whole[:-2])
    (OUT / "more_behind.jpg").write_bytes(whole + b"more" * 20)
    damaged = bytearray(whole)
    damaged[len(whole) * 7 // 8] ^= 0x55
    (OUT / "damaged.jpg").write_bytes(bytes(damaged))
    progressive = (OUT / "progressive_420.jpg").read_bytes()
    (OUT / "progressive_cut.jpg").write_bytes(progressive[: len(progressive) * 7 // 8])


def write_turned():
    image = picture(19, 11)
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        image.save(OUT / f"exif_{number}.jpg", quality=75, exif=exif)
    exif[0x0112] = 6
    image.save(OUT / "exif_6.png", exif=exif)
    image.save(OUT / "exif_6.webp", exif=exif, lossless=True)
    image.save(OUT / "exif_6.tiff", exif=exif, compression="tiff_lzw")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    image.save(OUT / "xmp_8.jpg", quality=75, xmp=xmp)
    for number in range(1, 9):
        exif[0x0112] = number
        image.save(OUT / f"irot_{number}.avif", quality=50, subsampling="4:4:4", exif=exif)


def write_webps():
    odd = picture(37, 29)
    odd.save(OUT / "lossy.webp", quality=60)
    odd.save(OUT / "lossless.webp", lossless=True)
    seen = odd.copy()
    seen.putalpha(Image.fromarray((np.arange(37 * 29) % 256).astype("uint8").reshape(29, 37)))
    seen.save(OUT / "alpha.webp", quality=60)
    frames = [picture(24, 16) for _ in range(4)]
    frames[0].save(OUT / "animated.webp", save_all=True, append_images=frames[1:], duration=[100, 50, 200, 70], quality=60)


def write_pngs():
    image = Image.fromarray(RNG.integers(0, 256, (9, 13, 3), dtype="uint8"))
    ppm = b"P6 13 9 65535\n" + RNG.integers(0, 65536, (9, 13, 3), dtype="u2").astype(">u2").tobytes()
    run("convert", "ppm:-", "-define", "png:bit-depth=16", "PNG48:" + str(OUT / "rgb16.png"), stdin=ppm)
    image.save(OUT / "dense.png", dpi=(100, 200))


def expected(path):
    try:
        image = Image.open(path)
        frames = [ImageOps.exif_transpose(f).convert("RGB") for f in ImageSequence.Iterator(image)]
    except OSError as error:
        return {"raises": str(error)}
    digest = hashlib.sha256(b"".join(f.tobytes() for f in frames)).hexdigest()
    return {"size": list(frames[0].size), "frames": len(frames), "sha256": digest}


def main():
    OUT.mkdir(exist_ok=True)
    write_jpegs()
    write_turned()
    write_webps()
    write_pngs()
    files = sorted(p for p in OUT.iterdir() if p.suffix != ".json")
    found = {p.name: expected(p) for p in files}
    (OUT / "expected.json").write_text(json.dumps(found, indent=1) + "\n")


main()
