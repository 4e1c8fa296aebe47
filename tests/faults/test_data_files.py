"""Hostile data files: every kind with every damage is read, or refused in one line, and never runs."""

import contextlib
import functools
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from attempts import attempt, complaints
from PIL import Image

SEED = int(os.environ.get("SEED", "0"))

pytestmark = [pytest.mark.usefixtures("as_user", "float32"), pytest.mark.timeout(60)]


# ---------------------------------------------------------------------------- whole files


def saved(write, *arguments, **options):
    file = io.BytesIO()
    write(file, *arguments, **options)
    return file.getvalue()


def picture(format, mode="L", **options):
    rng = np.random.default_rng(0)
    shape = (8, 8) if mode in ("L", "I;16") else (8, 8, 3)
    high, kind = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    image = Image.fromarray(rng.integers(0, high, shape).astype(kind))
    return saved(lambda file: image.save(file, format, **options))


def parquet():
    import pandas as pd

    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=list("abc"))
    return saved(lambda file: frame.to_parquet(file))


@functools.cache
def whole():
    """Return a good file of every kind, by its name."""
    x = np.random.default_rng(0).normal(size=(40, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = "\n".join(",".join(f"{v:.6f}" for v in row) for row in x)
    return {
        "a.npy": saved(np.save, x),
        "images.npy": saved(np.save, np.random.default_rng(0).random((20, 1, 8, 8), np.float32)),
        "a.npz": saved(np.savez_compressed, x=x, y=np.arange(40) % 3),
        "a.csv": f"a,b,c\n{rows}\n".encode(),
        "a.parquet": parquet(),
        "folder/a.png": picture("PNG"),
        "folder/deep.png": picture("PNG", "I;16"),
        "folder/a.jpg": picture("JPEG", "RGB", exif=exif),
        "folder/a.tif": picture("TIFF", "I;16"),
        "folder/a.bmp": picture("BMP", "RGB"),
        "folder/a.gif": picture("GIF"),
    }  # fmt: skip


def flipped(data, share, seed):
    rng = np.random.default_rng(seed)
    out = np.frombuffer(data, np.uint8).copy()
    at = rng.choice(len(out), max(1, int(share * len(out))), replace=False)
    out[at] ^= rng.integers(1, 256, len(at), dtype=np.uint8)
    return out.tobytes()


DAMAGES = {
    "nothing": lambda b: b,
    "empty": lambda b: b"",
    "one byte": lambda b: b[:1],
    "a quarter": lambda b: b[: len(b) // 4],
    "half": lambda b: b[: len(b) // 2],
    "the last byte gone": lambda b: b[:-1],
    "the first byte gone": lambda b: b[1:],
    "the first 16 bytes zero": lambda b: bytes(16) + b[16:],
    "64 bytes in the middle zero": lambda b: b[: len(b) // 2] + bytes(64) + b[len(b) // 2 + 64 :],
    "the last 64 bytes 0xff": lambda b: b[:-64] + b"\xff" * 64,
    "one byte in a hundred": lambda b: flipped(b, 0.01, SEED + 1),
    "one byte in ten": lambda b: flipped(b, 0.1, SEED + 2),
    "noise": lambda b: np.random.default_rng(SEED + 3).bytes(500),
    "twice": lambda b: b + b,
    "lines of Windows": lambda b: b.replace(b"\n", b"\r\n"),
    "UTF-16": lambda b: b.decode("latin-1").encode("utf-16"),
}


def put(folder, name, data):
    """Write a file, an image twice into a separate folder; return the path to pass."""
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(data)
    if path.parent != folder:
        good = whole()[name]
        path.with_name("b" + path.suffix).write_bytes(good)
        return path.parent
    return path


@pytest.mark.parametrize("name", whole())
def test_every_kind_with_every_damage(tmp_path, name):
    wrong = []
    for number, (damage, spoil) in enumerate(DAMAGES.items()):
        folder = tmp_path / str(number)
        path = put(folder, name, spoil(whole()[name]))
        outcome = attempt("info", path)
        wrong += [f"{name}, {damage}: {text}" for text in complaints(outcome)]
        if outcome.code and path.name not in outcome.err:
            wrong.append(f"{name}, {damage}: the file is not named: {outcome.err}")
        if damage == "nothing":
            assert outcome.code == 0, outcome.err
        if damage in ("empty", "noise") or (damage == "UTF-16" and name != "a.csv"):
            assert outcome.code == 1, (damage, outcome)
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------------- files made on purpose


class Bomb:
    """What leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def header(shape, descr="<f8", version=(1, 0)):
    """Return a .npy file that declares a shape and has eight bytes."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + bytes(8)


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def png(width, height, data=b"\x00"):
    """Return a picture that declares a size."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zeros(size=1_000_128, claimed=3_000_000_000):
    """Return an archive of zeros that says that it holds some gigabytes."""
    good = zipped({"x.npy": header((size // 8,))[:-8].ljust(size, b"\0")})
    return good.replace(struct.pack("<I", size), struct.pack("<I", claimed))


def many(columns):
    import pandas as pd

    return saved(lambda file: pd.DataFrame(columns).to_parquet(file))


def made(mark):
    """Return files that were made to hurt, by name."""
    rng, bomb = np.random.default_rng(0), Bomb(mark)
    x = rng.normal(size=(30, 2))
    frames = [Image.new("L", (8, 8), level) for level in (0, 200)]
    objects = np.array([bomb, bomb], dtype=object)
    return {
        "pickled.npy": saved(np.save, objects, allow_pickle=True),
        "plain-pickle.npy": pickle.dumps(bomb),
        "plain-pickle.npz": pickle.dumps(bomb),
        "plain-pickle.csv": pickle.dumps(bomb, 0),
        "pickled.npz": zipped({"x.npy": saved(np.save, objects, allow_pickle=True)}),
        "pickled-labels.npz": zipped({
            "x.npy": saved(np.save, x), "y.npy": saved(np.save, objects, allow_pickle=True),
        }),
        "rows.npy": header((2**40, 3)),
        "rows-1.npy": header((2**62, 2**62)),
        "rows-2.npy": header((2**40, 3), version=(2, 0)),
        "rows-3.npy": header((2**40, 3), version=(3, 0)),
        "version.npy": header((2, 2), version=(9, 9)),
        "negative.npy": header((-1, 3)),
        "huge-item.npy": header((2, 2), "V2000000000"),
        "no-item.npy": header((2**40, 3), "V0"),
        "nested.npy": header("(" * 5000 + ")" * 5000),
        "a-call.npy": header("__import__('os').getcwd()"),
        "long-header.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(100),
        "rows.npz": zipped({"x.npy": header((2**40, 3))}),
        "rows-labels.npz": zipped({"x.npy": saved(np.save, x), "y.npy": header((2**40,))}),
        "not-an-array.npz": zipped({"x.npy": b"hello"}),
        "no-suffix.npz": zipped({"x": saved(np.save, x)}),
        "empty.npz": zipped({}),
        "two.npz": saved(np.savez, a=x, b=x),
        "labels.npz": saved(np.savez, x=x, y=np.arange(7)),
        "stored.npz": zipped({"x.npy": saved(np.save, x)}, zipfile.ZIP_BZIP2),
        "climb.npz": zipped({"../../x.npy": saved(np.save, x)}),
        "zeros.npz": zeros(),
        "fields.npy": saved(np.save, np.zeros(5, [("a", "f8"), ("b", "i4")])),
        "complex.npy": saved(np.save, x.astype(complex)),
        "text.npy": saved(np.save, np.array(["a", "b"])),
        "days.npy": saved(np.save, np.array(["2020-01-01", "2020-01-02"], "M8[D]")),
        "scalar.npy": saved(np.save, np.float64(3)),
        "none.npy": saved(np.save, np.zeros((0, 3))),
        "six.npy": saved(np.save, np.zeros((2, 2, 2, 2, 2, 2))),
        "nan.npy": saved(np.save, np.full((9, 2), np.nan)),
        "big-endian.npy": saved(np.save, x.astype(">f8")),
        "half.npy": saved(np.save, x.astype(np.float16)),
        "long.npy": saved(np.save, x.astype(np.longdouble)),
        "nul.csv": b"a,b\n1,2\x00\n3,4\n",
        "quote.csv": b'a,b\n"1,2\n3,4\n',
        "field.csv": b"a,b\n1," + b"9" * 300_000 + b"\n",
        "line.csv": b"1," * 300,
        "ragged.csv": b"a,b\n1,2\n3\n",
        "header.csv": b"a,b\n",
        "spaces.csv": b"  \n \n",
        "latin.csv": "größe,b\n1,2\n3,4\n".encode("latin-1"),
        "same.csv": b"a,a\n1,2\n3,4\n",
        "columns.csv": b"\n".join(b",".join(b"%d" % (i * k) for i in range(200)) for k in (2, 3, 5)),
        "html.csv": b"<!doctype html><html><body>404, not found</body></html>\n",
        "json.csv": b'[{"a": 1}, {"a": 2}]',
        "formula.csv": b"a,b\n=1+1,2\n@SUM(A1),3\n",
        "numbers.csv": b"a\n1e400\n-1e400\n0x10\n",
        "nested.parquet": many({"a": [[1.0], [2.0, 3.0]], "b": [1.0, 2.0]}),
        "days.parquet": many({"a": np.array(["2020-01-01", "2020-01-02"], "M8[ns]")}),
        "bytes.parquet": many({"a": [b"\x00\xff", b"x"]}),
        "no-rows.parquet": many({"a": np.zeros(0)}),
        "magic.parquet": b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1",
        "f/size.png": png(60_000, 60_000),
        "f/warned.png": png(12_000, 9_000),
        "f/no-pixels.png": png(0, 8),
        "f/short.png": png(8, 8),
        "f/frames.gif": saved(
            lambda file: frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
        ),
        "f/text.png": b"hello",
        "f/float.tif": saved(
            lambda file: Image.fromarray(np.zeros((8, 8), np.float32)).save(file, "TIFF")
        ),
        "f/ink.jpg": saved(lambda file: Image.new("CMYK", (8, 8)).save(file, "JPEG")),
        "f/exif.jpg": picture("JPEG", "RGB", exif=b"Exif\0\0MM\0*" + b"\xff" * 44),
        "f/page.jpg": b"<svg onload='alert(1)'/>",
    }  # fmt: skip


ACCEPTED = {
    "no-suffix.npz", "stored.npz", "climb.npz", "big-endian.npy", "half.npy", "long.npy",
    "columns.csv", "f/exif.jpg", "plain-pickle.csv", "line.csv", "formula.csv", "numbers.csv",
    "days.parquet",
}  # fmt: skip
"""What is odd, and can be read all the same."""


def test_files_that_were_made_to_hurt(tmp_path):
    mark, wrong = tmp_path / "it ran", []
    attempt("info", tmp_path)  # imports, which cost five times as much while memory is traced
    for number, (name, data) in enumerate(made(mark).items()):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        image, peak = name.startswith("f/"), 0
        if image:
            path.with_name("b" + path.suffix).write_bytes(data)
        if measured := not name.endswith((".csv", ".parquet")):
            tracemalloc.start()
        outcome = attempt("info", path.parent if image else path)
        if measured:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if not mark.exists() and outcome.code == (0 if name in ACCEPTED else 1) and peak < 2**27:
            wrong += [f"{name}: {text}" for text in complaints(outcome)]
        else:
            wrong.append(f"{name}: {outcome}, {peak:,} bytes, it ran: {mark.exists()}")
    assert not wrong, "\n".join(wrong)


def test_what_is_no_file(tmp_path):
    """Pipes, devices, loops of links and folders: nothing waits, nothing is read for ever."""
    for suffix in ("npy", "npz", "csv", "parquet"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
        (tmp_path / f"loop.{suffix}").symlink_to(tmp_path / f"loop.{suffix}")
        (tmp_path / f"gone.{suffix}").symlink_to(tmp_path / "nothing")
        (tmp_path / f"folder.{suffix}").mkdir()
    names = [path.name for path in tmp_path.iterdir()]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture("PNG"))
    os.mkfifo(tmp_path / "images" / "b.png")
    wrong = []
    for name in [*names, "images", "x" * 300 + ".csv", "a\0b.csv"]:
        outcome = attempt("info", tmp_path / name)
        if outcome.code not in (1, 2):
            wrong.append(f"{name}: {outcome}")
        wrong += [f"{name}: {text}" for text in complaints(outcome)]
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------------- can it fail?


def test_the_harness_sees_readers_that_do_not_mind_what_is_raised(tmp_path, monkeypatch):
    """Negative control: without the guard around the readers some damage is an error unforeseen."""
    from gradlogp.learn.data import files, images

    for module in (files, images):
        monkeypatch.setattr(module, "reading", lambda path: contextlib.nullcontext())
    seen = set()
    for name in ("a.parquet", "a.npz", "folder/a.png"):
        for number, spoil in enumerate(DAMAGES.values()):
            path = put(tmp_path / name.replace("/", "-") / str(number), name, spoil(whole()[name]))
            outcome = attempt("info", path)
            if complaints(outcome) or path.name not in outcome.err:
                seen.add(name)
    assert seen == {"a.parquet", "a.npz", "folder/a.png"}
