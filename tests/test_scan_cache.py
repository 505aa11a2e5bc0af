"""The cache gives what decoding gives, whatever changed, was cut off, or ran at the same time."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geomed.data.rendition import Rendition
from geomed.data.scan_cache import FACTS, Rendered, ScanCache, Shard, UnusableScansError, file_digest
from geomed.data.scan_files import Reading


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "DOE_JANE"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(draw.integers(0, 256, (40, 50)).astype(np.uint8)).save(folder / f"19700101_{number}.png")
    return sorted(folder.iterdir())


class Recorder:
    """Renders and counts."""

    def __init__(self, files, rendition):
        self.files, self.rendition, self.calls = files, rendition, []

    def __call__(self, index):
        self.calls.append(index)
        return self.rendition.render(Reading().read(self.files[index], named=f"case {index}"))


def hold(cache, files, rendition=Rendition(size=16)):  # noqa: B008  (frozen)
    recorder = Recorder(files, rendition)
    return cache.hold(files, rendition.recipe(), recorder, rendition.dtype), recorder


@pytest.fixture
def cache(tmp_path):
    return ScanCache(folder=str(tmp_path / "cache"), workers=2)


def test_what_is_kept_is_what_decoding_gives(cache, files):
    shard, recorder = hold(cache, files)
    assert sorted(recorder.calls) == list(range(6))
    assert len(shard) == 6
    for index in range(6):
        rendered = recorder(index)
        assert np.array_equal(shard[index], rendered.values)
        assert shard.facts()[index] == rendered.facts
    assert shard[0].dtype == np.uint8
    assert not shard[0].flags.writeable


def test_the_second_time_nothing_is_decoded(cache, files):
    first, _ = hold(cache, files)
    second, recorder = hold(cache, files)
    assert recorder.calls == []
    assert all(np.array_equal(first[i], second[i]) for i in range(6))


@pytest.mark.parametrize(
    "other", [Rendition(size=17), Rendition(size=16, keep_aspect=False), Rendition(size=16, window=(100.0, 50.0))]
)
def test_another_recipe_is_another_array(cache, files, other):
    before, _ = hold(cache, files)
    after, recorder = hold(cache, files, other)
    assert len(recorder.calls) == 6
    assert after[0].shape != before[0].shape or not np.array_equal(after[0], before[0])


def test_a_changed_file_is_noticed_even_with_its_old_size_and_time(cache, files):
    flat = [np.full((8, 8), value, dtype=np.uint8) for value in (10, 200)]
    path = files[0].with_suffix(".bmp")
    Image.fromarray(flat[0]).save(path)
    before, status = hold(cache, [path, *files[1:]])[0][0].copy(), path.stat()
    Image.fromarray(flat[1]).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    shard, recorder = hold(cache, [path, *files[1:]])
    assert recorder.calls == [0]  # the others are taken over
    assert before.max() == 10
    assert shard[0].max() == 200


def test_names_do_not_matter_and_order_does_not_mix_scans_up(cache, files):
    before, _ = hold(cache, files)
    moved = [path.rename(path.with_name(f"x{number}.png")) for number, path in enumerate(files)][::-1]
    after, recorder = hold(cache, moved)
    assert recorder.calls == []
    assert all(np.array_equal(before[i], after[5 - i]) for i in range(6))


def test_the_same_file_twice_is_kept_once(cache, files):
    shard, recorder = hold(cache, [files[0], files[1], files[0]])
    assert sorted(recorder.calls) == [0, 1]
    assert np.array_equal(shard[0], shard[2])
    assert not np.array_equal(shard[0], shard[1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda _: b"",
        lambda content: content[:-40] + b"\xff" + content[-39:],
        lambda content: content[:-2000] + b"\xff" + content[-1999:],
    ],
    ids=["half", "one byte short", "empty", "trailer", "index"],
)
def test_a_damaged_file_of_the_cache_is_made_anew(cache, files, damage):
    shard, _ = hold(cache, files)
    expected, path = shard[3].copy(), shard.path
    del shard
    path.write_bytes(damage(path.read_bytes()))
    again, recorder = hold(cache, files)
    assert sorted(recorder.calls) == list(range(6))
    assert np.array_equal(again[3], expected)


CHILD = """
import os, sys, time
from pathlib import Path
from geomed.data.rendition import Rendition
from geomed.data.scan_cache import ScanCache
from geomed.data.scan_files import Reading
files = sorted(Path(sys.argv[1]).iterdir())
rendition = Rendition(size=16)
def render(index):
    if sys.argv[3] == "killed" and index == 3:
        os.kill(os.getpid(), 9)
    time.sleep(0.02)
    with open(sys.argv[4], "a") as log:
        log.write(f"{index}\\n")
    return rendition.render(Reading().read(files[index], named=str(index)))
shard = ScanCache(folder=sys.argv[2], workers=1).hold(files, rendition.recipe(), render, rendition.dtype)
print(int(shard[5].sum()))
"""


def child(files, cache, what, log):
    command = [sys.executable, "-c", CHILD, str(files[0].parent), cache.folder, what, str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_process_that_is_killed_leaves_nothing_that_counts(cache, files, tmp_path):
    process = child(files, cache, "killed", tmp_path / "log")
    assert process.wait(60) == -9
    process.stdout.close()
    left = sorted(path.suffix for path in Path(cache.folder).iterdir())
    assert left == [".lock", ".part"]
    shard, recorder = hold(cache, files)
    assert len(recorder.calls) == 6
    assert len(shard) == 6
    assert sorted(path.suffix for path in Path(cache.folder).iterdir()) == [".lock", ".scans"]


def test_several_processes_make_it_once(cache, files, tmp_path):
    processes = [child(files, cache, "whole", tmp_path / "log") for _ in range(2)]
    sums = {process.communicate(timeout=60)[0] for process in processes}
    assert len(sums) == 1
    assert sorted((tmp_path / "log").read_text().split()) == list("012345")


def test_all_unreadable_files_are_told_at_once_and_nothing_is_kept(cache, files):
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[4].write_bytes(b"no picture")
    missing = files[0].with_name("missing.png")
    with pytest.raises(UnusableScansError) as caught:
        hold(cache, files)
    assert sorted(caught.value.errors) == [1, 4]
    with pytest.raises(UnusableScansError) as caught:
        hold(cache, [*files, missing])
    assert sorted(caught.value.errors) == [6]
    assert not list(Path(cache.folder).glob("*.scans"))
    assert not list(Path(cache.folder).glob("*.part"))


def test_a_file_that_changes_while_it_is_read_is_refused(cache, files):
    def render(index):
        if index == 2:
            files[2].write_bytes(files[3].read_bytes())
        return Rendition(size=16).render(Reading().read(files[index], named="x"))

    with pytest.raises(UnusableScansError) as caught:
        cache.hold(files, {}, render, np.dtype(np.uint8))
    assert "was changed while it was read" in str(caught.value.errors[2])


def test_it_says_nothing_about_whose_scans_it_holds(cache, files):
    hold(cache, files)
    for path in Path(cache.folder).rglob("*"):
        content = path.read_bytes()
        assert not any(word in content for word in (b"DOE", b"JANE", b"1970", b".png"))
        assert "DOE" not in path.name
        assert path.stat().st_mode & 0o077 == 0
    assert Path(cache.folder).stat().st_mode & 0o077 == 0


def test_it_pickles_as_its_place(cache, files):
    shard, _ = hold(cache, files)
    pickled = pickle.dumps(shard)
    assert len(pickled) < 2000
    assert np.array_equal(pickle.loads(pickled)[2], shard[2])  # noqa: S301  (our own)


def test_scans_of_many_shapes_and_16_bits(cache):
    scans = [np.random.default_rng(i).integers(-1000, 3000, (i + 1, 1, 5, 7)).astype(np.int16) for i in range(3)]
    files = [Path(__file__), Path(pytest.__file__), Path(np.__file__)]

    def render(index):
        return Rendered(values=scans[index], facts=np.zeros((), dtype=FACTS)[()])

    shard = cache.hold(files, {"a": 1}, render, np.dtype(np.int16))
    assert all(np.array_equal(shard[i], scans[i]) for i in range(3))


def test_a_folder_that_cannot_be_written_is_told(files, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"cannot be written .*name another folder") as caught:
        hold(ScanCache(folder=str(tmp_path / "file" / "cache")), files)
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_is_the_content_of_its_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    before = file_digest(tmp_path)
    (tmp_path / "b").write_text("c")
    assert file_digest(tmp_path) != before


def test_an_epoch_from_the_cache_is_ten_times_faster_than_decoding(cache, tmp_path):
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (32, 32, 3)).astype(np.uint8))
    coarse.resize((1200, 900), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=90)
    shard, recorder = hold(cache, [tmp_path / "large.jpg"], Rendition(size=224, colour=True))

    def least(work):
        times = []
        for _ in range(5):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    decoding = least(lambda: recorder.rendition.pixels(Reading().read(recorder.files[0], named="x")))
    assert decoding >= 10 * least(lambda: np.array(shard[0]))


def test_an_incomplete_file_is_not_opened(tmp_path):
    (tmp_path / "x.scans").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not complete"):
        Shard(tmp_path / "x.scans", np.zeros(1, dtype=np.int64))
