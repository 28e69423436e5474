"""Videos: which frames are taken, what is read from good and bad files, which videos there are, rows for training."""

import json
import math
import pickle
import struct
import sys
import warnings
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainingArguments,
    VideoMAEImageProcessorPil,
    pipeline,
)

from fusible import ZeroI2VConfig, ZeroI2VForVideoClassification
from fusible.data import load_data
from fusible.data.images.transforms import normalize
from fusible.data.videos.annotations import (
    MissingVideoWarning,
    VideoList,
    annotation_list,
    few_shot,
    folder_of_classes,
    hmdb51,
    kinetics,
    mirrored_labels,
    something_something_v2,
    ucf101,
)
from fusible.data.videos.datasets import EvaluationVideos, TrainingVideos
from fusible.data.videos.decoding import (
    CorruptVideoWarning,
    ShortVideoWarning,
    UnusableVideoError,
    count_frames,
    read_frames,
    write_video,
)
from fusible.data.videos.sampling import DenseSampling, UniformSampling, make_sampling
from fusible.data.videos.transforms import crops, random_resized_crop, resize_short_side


av = pytest.importorskip("av")
TOTALS = [1, 2, 5, 7, 8, 9, 16, 29, 30, 57, 113, 114, 128, 129, 250, 300, 301]


# which frames


@pytest.mark.parametrize(("frames", "interval"), [(8, 16), (32, 4), (8, 1), (1, 5)])
@pytest.mark.parametrize("total", TOTALS)
def test_dense_sampling(total, frames, interval):
    sampling = DenseSampling(frames, interval)
    room = max(total - ((frames - 1) * interval + 1), 0)
    for clips, starts in {1: [room // 2], 2: [0, room], 3: [round(k * room / 2) for k in range(3)]}.items():
        expected = [[(start + i * interval) % total for i in range(frames)] for start in starts]
        assert sampling.test(total, clips).tolist() == expected
    generator, starts = np.random.default_rng(0), Counter()
    for _ in range(200):
        (clip,) = sampling.train(total, generator).tolist()
        assert clip == [(clip[0] + i * interval) % total for i in range(frames)]
        starts[clip[0]] += 1
    last = max(total - frames * interval, 0)
    assert set(starts) <= set(range(last + 1))
    if last < 20:
        assert set(starts) == set(range(last + 1))


@pytest.mark.parametrize("frames", [1, 8, 16, 32])
@pytest.mark.parametrize("total", TOTALS)
def test_uniform_sampling(total, frames):
    sampling, segment = UniformSampling(frames), (total - 1) / frames
    for clips in (1, 2, 3):
        expected = [
            [round(segment * i) + int(segment / (clips + 1) * (k + 1)) for i in range(frames)] for k in range(clips)
        ]
        indices = sampling.test(total, clips)
        assert indices.tolist() == expected and indices.max() < total
    generator = np.random.default_rng(0)
    drawn = np.concatenate([sampling.train(total, generator) for _ in range(300)])
    for i in range(frames):
        first, last = round(segment * i), round(segment * (i + 1))
        assert drawn[:, i].min() >= first and drawn[:, i].max() <= last < total
        if last - first < 10:
            assert set(drawn[:, i].tolist()) == set(range(first, last + 1))


def test_short_videos_by_hand():
    assert DenseSampling(4, 3).test(5).tolist() == [[0, 3, 1, 4]]
    assert DenseSampling(4, 3).test(12, 3).tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert DenseSampling(8, 16).test(300, 3)[:, 0].tolist() == [0, 94, 187]  # 93.5 rounds to the even number
    assert UniformSampling(4).test(3).tolist() == [[0, 0, 1, 2]]
    assert UniformSampling(8).test(8).tolist() == [[0, 1, 2, 3, 4, 4, 5, 6]]
    assert UniformSampling(4).test(1).tolist() == [[0, 0, 0, 0]]
    assert DenseSampling(8, 16).min_frames == 113 and UniformSampling(8).min_frames == 8


def test_sampling_from_a_configuration():
    assert make_sampling("dense", 8, 16) == DenseSampling(8, 16)
    assert make_sampling("uniform", 8, 16) == UniformSampling(8)
    with pytest.raises(ValueError, match="kind is 'sparse'"):
        make_sampling("sparse", 8, 16)
    for wrong in (lambda: DenseSampling(8, 0), lambda: UniformSampling(0), lambda: UniformSampling(8).test(0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            wrong()


# files


def pictures(num_frames=8, height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def write(file, frames, codec="libx264rgb", pixels="rgb24", options=None, container=None):
    with av.open(file, "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options or {"qp": "0", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())


def test_decoding_returns_what_was_written(tmp_path):
    frames = pictures(9)
    write_video(tmp_path / "video.mp4", frames)
    assert count_frames(tmp_path / "video.mp4") == 9
    assert np.array_equal(read_frames(tmp_path / "video.mp4", np.arange), frames)
    wanted = np.array([[7, 0, 3], [3, 3, 8]])
    assert np.array_equal(read_frames(tmp_path / "video.mp4", lambda total: wanted), frames[wanted])


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.avi", "mpeg4", "yuv420p"), ("a.webm", "libvpx-vp9", "yuv420p"), ("a.mkv", "libx264", "yuv420p")],
)
def test_other_formats(tmp_path, name, codec, pixels):
    smooth = np.linspace(0, 255, 32, dtype=np.uint8)[None, None, :, None].repeat(24, 1).repeat(3, 3)
    frames = (smooth // 2 + 10 * np.arange(12, dtype=np.uint8)[:, None, None, None]).astype(np.uint8)
    write(tmp_path / name, frames, codec, pixels, {"deadline": "realtime"} if codec == "libvpx-vp9" else {"g": "6"})
    assert count_frames(tmp_path / name) == 12
    read = read_frames(tmp_path / name, lambda total: np.arange(1, total, 3))
    assert read.shape == (4, 24, 32, 3) and np.abs(read - frames[1::3].astype(int)).mean() < 6


SMOOTH = np.repeat(np.linspace(20, 230, 64, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2)


def write_uneven(file, times):
    """A video of frames at these times, `[48, 64, 3]`, of which number n is darker by 4 n."""
    with av.open(file, "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray((SMOOTH - 4 * min(number, 5)).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def test_intact_videos_are_not_called_corrupt(tmp_path):
    """An AVI that skips frames, whose header counts them, and an MP4 whose edit list shows frames 20 to 39."""
    write_uneven(tmp_path / "skip.avi", [0, 1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 19, 20])
    frames = np.arange(60, dtype=np.uint8)[:, None, None, None] * 4 + np.zeros((48, 64, 3), np.uint8)
    write(tmp_path / "trimmed.mp4", frames, "libx264", "yuv420p", {"g": "12"})
    data = bytearray((tmp_path / "trimmed.mp4").read_bytes())
    place = data.find(b"elst") + 12
    (start,) = struct.unpack(">i", data[place + 4 : place + 8])
    # 800 of a movie's 1000 ticks a second, from 20 of the stream's frames of 512 ticks on
    data[place : place + 8] = struct.pack(">Ii", 800, start + 20 * 512)
    (tmp_path / "trimmed.mp4").write_bytes(data)
    assert read_frames(tmp_path / "skip.avi", np.arange).shape == (16, 48, 64, 3)
    assert count_frames(tmp_path / "trimmed.mp4") == 20
    shown = read_frames(tmp_path / "trimmed.mp4", np.arange)
    assert np.abs(shown.mean((1, 2, 3)) - 4 * np.arange(20, 40)).max() < 3

    write_uneven(tmp_path / "cut.avi", range(400))
    whole = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnusableVideoError, match=r"cut\.avi has \d+ of 400 frames"):
        count_frames(tmp_path / "cut.avi")


def write_with_sound(file, codec, seconds):
    """100 frames of noise, 4 seconds, and silence."""
    noise = pictures(100)
    with av.open(file, "w") as output:
        stream, sound = output.add_stream(codec, rate=25), output.add_stream("pcm_s16le", rate=8000, layout="mono")
        stream.height, stream.width, stream.pix_fmt = 24, 32, "yuv420p"
        for number, picture in enumerate(noise):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            samples = np.zeros((1, 80 * seconds), np.int16)
            heard = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 8000, number * samples.size, Fraction(1, 8000)
            output.mux(sound.encode(heard))
        output.mux(stream.encode())


@pytest.mark.parametrize(("kind", "codec"), [("mkv", "libx264"), ("avi", "mpeg4"), ("wmv", "wmv2")])
@pytest.mark.parametrize("seconds", [3, 4, 9])
def test_cut_videos_are_named_and_those_with_longer_sound_are_not(tmp_path, kind, codec, seconds):
    whole, file = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
    write_with_sound(whole, codec, seconds)
    assert count_frames(whole) == 100
    data = whole.read_bytes()
    # wherever it is: within a packet, or between two, of pictures or of sound
    for length in range(len(data) // 3, len(data) // 3 + 1500, 43):
        file.write_bytes(data[:length])
        with pytest.raises(UnusableVideoError, match=rf"cut\.{kind} has \d+ of .* frames") as caught:
            count_frames(file)
        assert 0 < caught.value.readable < 100


def test_videos_that_do_not_say_how_long_they_are(tmp_path):
    """As players write them to a pipe: what is there is the video."""
    write(tmp_path / "live.mkv", pictures(9), container={"live": "1"})
    assert count_frames(tmp_path / "live.mkv") == 9


# EXIF's number and the display matrix of an orientation, and what they make of a picture
ONE = 1 << 16
SHOWN = {
    "phone": (6, (0, ONE, -ONE, 0), lambda picture: np.rot90(picture, -1)),
    "other way": (8, (0, -ONE, ONE, 0), lambda picture: np.rot90(picture)),
    "upside down": (3, (-ONE, 0, 0, -ONE), lambda picture: np.rot90(picture, 2)),
    "mirror": (2, (-ONE, 0, 0, ONE), lambda picture: picture[:, ::-1]),
    "water": (4, (ONE, 0, 0, -ONE), lambda picture: picture[::-1]),
    "diagonal": (5, (0, ONE, ONE, 0), lambda picture: picture.swapaxes(0, 1)),
    "other diagonal": (7, (0, -ONE, -ONE, 0), lambda picture: picture[::-1, ::-1].swapaxes(0, 1)),
}


def test_videos_are_upright(tmp_path):
    frames = pictures(3)
    write_video(tmp_path / "video.mp4", frames)
    data = bytearray((tmp_path / "video.mp4").read_bytes())
    place = data.find(b"tkhd") + 44
    for number, (a, b, c, d), turn in SHOWN.values():
        data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        (tmp_path / "turned.mp4").write_bytes(data)
        assert np.array_equal(read_frames(tmp_path / "turned.mp4", np.arange), [turn(frame) for frame in frames])
        exif = Image.Exif()
        exif[274] = number
        Image.fromarray(frames[0]).save(tmp_path / "img_1.png", exif=exif)
        assert np.array_equal(read_frames(tmp_path, np.arange, frame_files="img_1.png"), [turn(frames[0])])
    data[place : place + 36] = struct.pack(">9i", ONE, ONE, 0, -ONE, ONE, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    with pytest.raises(UnusableVideoError, match=r"turned\.mp4 is to be shown at an angle"):
        read_frames(tmp_path / "turned.mp4", np.arange)


def test_videos_of_pictures_with_exif_data_are_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(SMOOTH).save(tmp_path / "picture.jpg", exif=exif)
    packet = av.Packet((tmp_path / "picture.jpg").read_bytes())
    with av.open(tmp_path / "video.avi", "w") as output:
        packet.stream = output.add_stream("mjpeg", rate=25)
        packet.stream.height, packet.stream.width, packet.stream.pix_fmt = 48, 64, "yuvj420p"
        packet.pts = packet.dts = 0
        output.mux(packet)
    (shown,) = read_frames(tmp_path / "video.avi", np.arange)
    assert shown.shape == (64, 48, 3) and np.abs(shown - np.rot90(SMOOTH, -1).astype(int)).max() < 8


def test_frames_in_the_order_of_their_numbers(tmp_path):
    """Without leading zeros, as pictures that EXIF turns, and beside macOS's hidden files."""
    exif = Image.Exif()
    exif[274] = 6
    for number in range(1, 13):
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[0] = 20 * number  # the upper row, which is shown at the right
        Image.fromarray(picture).save(tmp_path / f"img_{number}.png", exif=exif)
        (tmp_path / f"._img_{number}.png").write_bytes(b"of macOS")
    frames = read_frames(tmp_path, np.arange, frame_files="*.png")
    assert frames.shape == (12, 6, 4, 3) and not frames[:, :, :3].any()
    assert frames[:, 0, 3, 0].tolist() == [20 * number for number in range(1, 13)]


def test_folder_of_frames(tmp_path):
    frames = pictures(12)
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(tmp_path / f"img_{number:05d}.png")
        Image.fromarray(frame).save(tmp_path / f"flow_x_{number:05d}.png")
    indices = np.array([[11, 0], [5, 5]])
    assert np.array_equal(read_frames(tmp_path, lambda n: indices, frame_files="img_*.png"), frames[indices])
    with pytest.raises(UnusableVideoError, match=r"no files img_\*\.jpg"):
        read_frames(tmp_path, np.arange)
    (tmp_path / "img_00005.png").write_bytes(b"no picture")
    with pytest.raises(UnusableVideoError, match="img_00005.png cannot be read") as caught:
        read_frames(tmp_path, np.arange, frame_files="img_*.png")
    assert caught.value.readable == 4


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """Files and what is wrong with them; `half.mp4` is readable up to frame 4, `damaged.mp4` up to frame 3."""
    folder = tmp_path_factory.mktemp("bad")
    frames = pictures(8)
    write(folder / "good.mp4", frames, container={"movflags": "faststart"})
    with av.open(folder / "good.mp4") as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = (folder / "good.mp4").read_bytes()
    damaged = bytearray(data)
    damaged[places[3] : places[5]] = bytes(places[5] - places[3])
    write_video(folder / "end.mp4", frames)  # its index is at the end
    (folder / "end.mp4").write_bytes((folder / "end.mp4").read_bytes()[:-200])
    (folder / "half.mp4").write_bytes(data[: places[4] + 10])
    (folder / "damaged.mp4").write_bytes(damaged)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("This is not a video.\n" * 50)
    with av.open(folder / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return folder


BAD = {
    "empty.mp4": "cannot be read: Invalid data",
    "text.mp4": "cannot be read: Invalid data",
    "end.mp4": "cannot be read",
    "gone.mp4": "cannot be read: No such file",
    "sound.mp4": "no video",
    "half.mp4": "has 4 of 8 frames",
    "damaged.mp4": "cannot be decoded",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(bad_files, name):
    with pytest.raises(UnusableVideoError, match=f"{name} .*{BAD[name]}") as caught:
        read_frames(bad_files / name, np.arange)
    assert caught.value.readable == {"half.mp4": 4, "damaged.mp4": 3}.get(name, 0)


def test_frames_that_a_decoder_filled_in_are_damaged(tmp_path):
    """H.264 hides what is missing; from that frame on, pictures are others than those that were written."""
    frames = pictures(12)
    write_video(tmp_path / "video.mp4", frames)
    with av.open(tmp_path / "video.mp4") as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][5]
    data = bytearray((tmp_path / "video.mp4").read_bytes())
    middle = packet.pos + packet.size // 2
    data[middle : middle + 8] = bytes(range(100, 108))
    (tmp_path / "video.mp4").write_bytes(data)
    with pytest.raises(UnusableVideoError, match=r"video\.mp4 is damaged in frame") as caught:
        read_frames(tmp_path / "video.mp4", np.arange)
    assert caught.value.readable == 5
    first = read_frames(tmp_path / "video.mp4", np.arange, readable=5)
    np.testing.assert_array_equal(first, frames[:5])


def test_random_damage_never_ends_an_epoch(bad_files, tmp_path):
    generator, data = np.random.default_rng(0), (bad_files / "good.mp4").read_bytes()
    outcomes = Counter()
    for _ in range(80):
        damaged = bytearray(data)
        for place in generator.integers(len(data), size=20):
            damaged[place] = generator.integers(256)
        (tmp_path / "video.mp4").write_bytes(damaged)
        try:
            outcomes[len(read_frames(tmp_path / "video.mp4", np.arange)) > 0] += 1
        except UnusableVideoError:
            outcomes["unusable"] += 1
    assert outcomes["unusable"] > 70


def test_without_pyav(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'fusible\[video\]'"):
        TrainingVideos(VideoList([tmp_path / "a.mp4"], [0], ["a"]), UniformSampling(4))
    TrainingVideos(VideoList([tmp_path], [0], ["a"]), UniformSampling(4))  # a folder of frames needs no PyAV


# which videos


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def described(videos, folder):
    return {
        str(path.relative_to(folder)): videos.classes[label]
        for path, label in zip(videos.paths, videos.labels, strict=True)
    }


def test_folder_of_classes(tmp_path):
    touch(tmp_path, "run/b.mp4", "run/a.AVI", "run/notes.txt", "jump/c/img_00001.jpg", "readme.txt")
    (tmp_path / "sit").mkdir()
    videos = folder_of_classes(tmp_path)
    assert videos.classes == ["jump", "run", "sit"] and len(videos) == 3
    assert described(videos, tmp_path) == {"jump/c": "jump", "run/a.AVI": "run", "run/b.mp4": "run"}
    with pytest.raises(FileNotFoundError, match="names no videos"):
        folder_of_classes(tmp_path / "sit")


def test_annotation_list(tmp_path):
    touch(tmp_path, "a b.mp4", "c/d.mp4", "frames/e/img_00001.jpg")
    lines = tmp_path / "list.txt"
    lines.write_text("a b.mp4 1\nc/d.mp4 0\n\nframes/e 17 2\n")
    videos = annotation_list(lines, tmp_path, ["x", "y", "z"])
    assert described(videos, tmp_path) == {"a b.mp4": "y", "c/d.mp4": "x", "frames/e": "z"}
    with pytest.raises(ValueError, match="Line 4 of .*not a path and a label below 2"):
        annotation_list(lines, tmp_path, ["x", "y"])
    lines.write_text("a b.mp4 1\ngone.mp4 0\n")
    with pytest.warns(MissingVideoWarning, match=r"1 of the 2 videos .*gone\.mp4"):
        assert len(annotation_list(lines, tmp_path, ["x", "y"])) == 1
    lines.write_text("gone.mp4 0\n")
    with pytest.raises(FileNotFoundError, match=r"None of the 1 videos .*gone\.mp4"):
        annotation_list(lines, tmp_path, ["x"])


def test_kinetics(tmp_path):
    rows = "label,youtube_id,time_start,time_end,split\nyoga,x1,5,15,train\nair drumming,-y,100,110,train\n"
    (tmp_path / "train.csv").write_text(rows + "air drumming,z,0,10,train\n")
    touch(tmp_path, "x1_000005_000015.mp4", "air drumming/-y_000100_000110.mp4", "air_drumming/z_000000_000010.mp4")
    videos = kinetics(tmp_path / "train.csv", tmp_path)
    assert videos.classes == ["air drumming", "yoga"] and videos.labels == [1, 0, 0]
    assert kinetics(tmp_path / "train.csv", tmp_path, ["yoga", "air drumming"]).labels == [0, 1, 1]
    with pytest.raises(ValueError, match="'yoga', which is none of the 1 classes"):
        kinetics(tmp_path / "train.csv", tmp_path, ["air drumming"])
    for wrong in ('"yoga,x1,5,15,train\n', '"yoga,x1,5,15,train\nyoga",x1,5,15,train\n', "yoga,x1\n"):
        (tmp_path / "train.csv").write_text(rows + wrong + rows.split("\n", 1)[1])
        with pytest.raises(ValueError, match=r"train\.csv cannot be read after line 3"):
            kinetics(tmp_path / "train.csv", tmp_path)
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="label, time_end, time_start, youtube_id"):
        kinetics(tmp_path / "train.csv", tmp_path)


def test_something_something_v2(tmp_path):
    labels = {"Pushing something from left to right": "1", "Holding something": "0"}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    row = {"id": "7", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]}
    (tmp_path / "train.json").write_text(json.dumps([row]))
    (tmp_path / "test.json").write_text(json.dumps([{"id": "7"}]))
    touch(tmp_path, "7.webm")
    videos = something_something_v2(tmp_path / "train.json", tmp_path / "labels.json", tmp_path)
    assert videos == VideoList(
        [tmp_path / "7.webm"], [0], ["Holding something", "Pushing something from left to right"]
    )
    with pytest.raises(ValueError, match=r"Video 7 of .*test\.json"):
        something_something_v2(tmp_path / "test.json", tmp_path / "labels.json", tmp_path)


def test_ucf101(tmp_path):
    touch(tmp_path, "Archery/v_1.avi", "Biking/v_2/img_00001.jpg", "Biking/v_3.avi")
    (tmp_path / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    (tmp_path / "trainlist02.txt").write_text("Archery/v_1.avi 1\nBiking/v_2.avi 2\n")
    (tmp_path / "testlist02.txt").write_text("Biking/v_3.avi\n")
    train = ucf101(tmp_path, tmp_path, 2)
    assert described(train, tmp_path) == {"Archery/v_1.avi": "Archery", "Biking/v_2": "Biking"}
    assert described(ucf101(tmp_path, tmp_path, 2, train=False), tmp_path) == {"Biking/v_3.avi": "Biking"}
    (tmp_path / "testlist02.txt").write_text("Bowling/v_3.avi\n")
    with pytest.raises(ValueError, match="the classes Bowling"):
        ucf101(tmp_path, tmp_path, 2, train=False)


def test_hmdb51(tmp_path):
    touch(tmp_path, *(f"{name}/{i}.avi" for name in ("wave", "brush_hair") for i in range(3)))
    for name in ("wave", "brush_hair"):
        (tmp_path / f"{name}_test_split1.txt").write_text("0.avi 1 \n1.avi 2 \n2.avi 0 \n")
        (tmp_path / f"{name}_test_split2.txt").write_text("0.avi 0 \n1.avi 1 \n2.avi 1 \n")
    train, test = hmdb51(tmp_path, tmp_path), hmdb51(tmp_path, tmp_path, train=False)
    assert train.classes == ["brush_hair", "wave"]
    assert described(train, tmp_path) == {"brush_hair/0.avi": "brush_hair", "wave/0.avi": "wave"}
    assert described(test, tmp_path) == {"brush_hair/1.avi": "brush_hair", "wave/1.avi": "wave"}
    assert len(hmdb51(tmp_path, tmp_path, 2)) == 4
    with pytest.raises(FileNotFoundError, match="names no videos"):
        hmdb51(tmp_path, tmp_path, 3)


def test_few_shot(tmp_path):
    videos = VideoList([tmp_path / str(i) for i in range(30)], [i % 3 for i in range(30)], ["a", "b", "c"])
    chosen = few_shot(videos, 4, seed=1)
    assert Counter(chosen.labels) == {0: 4, 1: 4, 2: 4} and len(set(chosen.paths)) == 12
    assert all(int(path.name) % 3 == label for path, label in zip(chosen.paths, chosen.labels, strict=True))
    assert few_shot(videos, 4, seed=1) == chosen != few_shot(videos, 4, seed=2)
    with pytest.raises(ValueError, match="shots is 11; class 'a' has 10 videos"):
        few_shot(videos, 11)


def test_mirrored_labels():
    names = [f"Doing {i} to something" for i in range(174)]
    pairs = {86: 87, 93: 94, 166: 167}  # of Something-Something V2
    names[86], names[87] = (f"Pulling something from {way}" for way in ("left to right", "right to left"))
    names[93], names[94] = (f"Pushing something from {way}" for way in ("left to right", "right to left"))
    names[166], names[167] = (f"Turning the camera {way} while filming something" for way in ("left", "right"))
    both = pairs | {right: left for left, right in pairs.items()}
    assert mirrored_labels(names) == [both.get(number, number) for number in range(174)]
    assert mirrored_labels(["turn_left", "turn_right", "leftover", "upright"]) == [1, 0, 2, 3]
    assert mirrored_labels(["TurnLeft", "TurnRight", "Putting it to the left", "same", "same"]) == [1, 0, None, 3, 4]


# rows


def test_resizing_and_crops():
    frames = torch.from_numpy(pictures(2, 30, 47)).movedim(-1, -3)
    assert resize_short_side(frames, 24).shape == (2, 3, 24, 38)  # 37.6
    assert resize_short_side(frames.mT, 24).shape == (2, 3, 38, 24)
    exact = torch.nn.functional.interpolate(frames.double(), (24, 38), mode="bilinear")
    assert (resize_short_side(frames, 24) - exact).abs().max() <= 1
    pillow = Image.fromarray(frames[0].movedim(0, -1).numpy()).resize((38, 24), Image.Resampling.BILINEAR)
    smooth = resize_short_side(frames, 24, antialias=True)[0].movedim(0, -1).int()
    assert (smooth - torch.from_numpy(np.array(pillow)).int()).abs().max() <= 1
    left, right, middle = crops(frames, 30, 3)
    assert torch.equal(left, frames[..., :30]) and torch.equal(right, frames[..., 16:46])
    assert torch.equal(middle, frames[..., 8:38]) and torch.equal(crops(frames, 30)[0], middle)
    assert torch.equal(crops(frames.mT, 30, 3)[1], right.mT)


def test_random_resized_crop():
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    place = torch.stack([rows, columns, rows + columns]).expand(2, 3, 40, 60)
    generator, areas, ratios = np.random.default_rng(0), [], []
    for _ in range(300):
        cut = random_resized_crop(place, 50, generator, (0.2, 0.5))
        assert cut.shape == (2, 3, 50, 50) and torch.equal(cut[0], cut[1])
        height, width = ((line[-5] - line[5]).item() / 40 * 50 for line in (cut[0, 0, :, 25], cut[0, 1, 25]))
        areas.append(height * width / 2400)
        ratios.append(width / height)
    assert 0.18 < min(areas) < 0.24 and 0.46 < max(areas) < 0.54
    assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.45
    assert np.mean(np.log(ratios)) == pytest.approx(0, abs=0.05)
    fallback = random_resized_crop(place, 40, generator, (1, 1), (1, 1))
    assert torch.equal(fallback, place[..., 10:50])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight videos, `[12, 24, 32, 3]`, of four classes; all frames differ."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(8):
        name = ("go left", "go right", "look left", "stay")[number % 4]
        (folder / name).mkdir(exist_ok=True)
        write_video(folder / name / f"{number}.mp4", pictures(12, seed=number))
    return folder_of_classes(folder)


def expected_row(frames, indices, columns=slice(4, 28)):
    pixels = normalize(torch.from_numpy(frames[np.array(indices)]).movedim(-1, -3), [0.5] * 3, [0.2] * 3)
    return pixels[..., columns]


SMALL = {"size": 24, "mean": [0.5] * 3, "std": [0.2] * 3}


def test_test_rows(videos):
    data = EvaluationVideos(videos, DenseSampling(4, 2), **SMALL)
    row = data[1]
    source = read_frames(videos.paths[1], np.arange)
    assert row["labels"] == videos.labels[1] and isinstance(row["labels"], int) and len(data) == 8
    assert row["pixel_values"].shape == (4, 3, 24, 24) and row["pixel_values"].dtype == torch.float32
    assert torch.equal(row["pixel_values"], expected_row(source, [2, 4, 6, 8]))
    assert expected_row(source, [0])[0, 1, 2, 3].item() == pytest.approx(
        (source[0, 2, 7, 1] / 255 - 0.5) / 0.2, abs=1e-6
    )

    views = EvaluationVideos(videos, DenseSampling(4, 2), num_clips=2, num_crops=3, **SMALL)
    assert len(views) == 8 and views[1]["pixel_values"].shape == (6, 4, 3, 24, 24)
    columns = [slice(0, 24), slice(8, 32), slice(4, 28)]
    starts = [0, 5]
    expected = [expected_row(source, np.arange(4) * 2 + start, cut) for start in starts for cut in columns]
    assert torch.equal(views[1]["pixel_values"], torch.stack(expected))
    for wrong in (8, -1):
        with pytest.raises(IndexError):
            data[wrong]


def test_training_rows(videos):
    data = TrainingVideos(
        videos,
        UniformSampling(4),
        resize=24,
        resized_crop_area=(1, 1),
        resized_crop_ratio=(1, 1),
        horizontal_flip=0.5,
        **SMALL,
    )
    number = videos.classes.index("go left")
    index = videos.labels.index(number)
    source = torch.stack([expected_row(read_frames(videos.paths[index], np.arange), [i])[0] for i in range(12)])
    labels, clips = Counter(), set()
    for _ in range(60):
        row = data[index]
        frames = row["pixel_values"]
        assert frames.shape == (4, 3, 24, 24) and frames.dtype == torch.float32
        flipped = row["labels"] == videos.classes.index("go right")
        frames = frames.flip(-1) if flipped else frames
        distances = (frames[:, None] - source[None]).abs().flatten(2).amax(-1)
        assert distances.amin(-1).max() == 0
        clips.add(tuple(distances.argmin(-1).tolist()))
        labels[row["labels"]] += 1
    assert set(labels) == {number, videos.classes.index("go right")} and min(labels.values()) > 15
    assert len(clips) > 20 and all(max(clip) < 12 and list(clip) == sorted(clip) for clip in clips)

    always = TrainingVideos(
        videos,
        UniformSampling(4),
        resize=24,
        resized_crop_area=(1, 1),
        resized_crop_ratio=(1, 1),
        horizontal_flip=1,
        **SMALL,
    )
    plain = EvaluationVideos(VideoList(videos.paths, videos.labels, videos.classes), UniformSampling(4), **SMALL)
    for name, is_flipped in {"look left": False, "stay": True}.items():  # no class for "look right"
        index = videos.labels.index(videos.classes.index(name))
        row, every = always[index], read_frames(videos.paths[index], np.arange)
        assert row["labels"] == plain[index]["labels"]
        last = expected_row(every, np.arange(12))
        last = last.flip(-1) if is_flipped else last
        assert (row["pixel_values"][-1] - last).abs().flatten(1).amax(-1).min() == 0


def test_augmented_rows(videos):
    """All frames get the same operations, then the same rectangle is erased."""
    whole = {"resize": 24, "resized_crop_area": (1, 1), "resized_crop_ratio": (1, 1), "horizontal_flip": 0.0, **SMALL}
    index = videos.labels.index(videos.classes.index("stay"))
    inverting = TrainingVideos(videos, UniformSampling(4), auto_augment="rand-m7-n4", **whole)
    torch.manual_seed(0)
    rows = [inverting[index]["pixel_values"] for _ in range(20)]
    assert len({row.sum().item() for row in rows}) > 10 and all(row.shape == (4, 3, 24, 24) for row in rows)
    erasing = TrainingVideos(videos, UniformSampling(4), random_erasing=1.0, random_erasing_mode="const", **whole)
    for _ in range(5):
        erased = (erasing[index]["pixel_values"] == 0).all(1)
        assert 0.01 < erased[0].float().mean() < 0.4 and (erased == erased[0]).all()


def test_order_of_augmentation(videos, tmp_path):
    """RandAugment sees whole frames on Kinetics, and crops on Something-Something V2."""
    index = videos.labels.index(videos.classes.index("stay"))
    for first, size in ((True, (40, 30)), (False, (24, 24))):
        data = TrainingVideos(
            videos, UniformSampling(4), auto_augment="rand-m7-n4", auto_augment_first=first, resize=30, **SMALL
        )
        seen = []
        data.auto_augment = lambda pictures, generator, seen=seen: seen.extend(pictures) or pictures
        assert data[index]["pixel_values"].shape == (4, 3, 24, 24) and {picture.size for picture in seen} == {size}
    for split in ("train", "validation"):
        rows = [{"id": "7", "template": "Holding [something]"}]
        (tmp_path / f"something-something-v2-{split}.json").write_text(json.dumps(rows))
    (tmp_path / "something-something-v2-labels.json").write_text(json.dumps({"Holding something": "0"}))
    touch(tmp_path, "7.webm", "train/a/7.mp4", "test/a/7.mp4")
    options = {"folder": str(tmp_path), "annotations": str(tmp_path)}
    config = ZeroI2VConfig(num_frames=4, sampling="uniform")
    for dataset, given, first in (
        ("video_folder", {"path": str(tmp_path)}, True),
        ("something_something_v2", options, False),
    ):
        data = load_data(dataset, given, config=config, processor=VideoMAEImageProcessorPil())
        assert data.train.auto_augment_first == first


def test_default_crops_are_random(videos):
    data = TrainingVideos(videos, UniformSampling(4), **SMALL)
    data = pickle.loads(pickle.dumps(data))  # for workers that are spawned
    rows = [data[videos.labels.index(videos.classes.index("stay"))]["pixel_values"] for _ in range(3)]
    assert all(row.shape == (4, 3, 24, 24) for row in rows) and not torch.equal(rows[0], rows[1])
    with pytest.raises(ValueError, match="size is 24 and resize is 20"):
        TrainingVideos(videos, UniformSampling(4), size=24, resize=20)
    for wrong in ({"resized_crop_area": (0.5, 0.1)}, {"horizontal_flip": 2.0}, {"corrupt": "stop"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            TrainingVideos(videos, UniformSampling(4), **wrong)
    with pytest.raises(ValueError, match="num_crops 2"):
        EvaluationVideos(videos, UniformSampling(4), num_crops=2)
    with pytest.raises(ValueError, match="no videos"):
        EvaluationVideos(VideoList([], [], ["a"]), UniformSampling(4))


def with_bad(videos, bad_files, *names):
    labels = [len(videos.classes)] * len(names)
    return VideoList(
        [bad_files / name for name in names] + videos.paths, labels + videos.labels, [*videos.classes, "bad"]
    )


@pytest.mark.filterwarnings("ignore::fusible.data.videos.decoding.ShortVideoWarning")
@pytest.mark.parametrize("name", BAD)
def test_unusable_videos_are_replaced_in_training_only(videos, bad_files, name):
    mixed = with_bad(videos, bad_files, name, name)
    # all of a clip of all frames, so that it is known which video a row is of
    whole = {"resize": 24, "resized_crop_area": (1, 1), "resized_crop_ratio": (1, 1), "horizontal_flip": 0.0, **SMALL}
    data = TrainingVideos(mixed, DenseSampling(12, 1), **whole)
    with pytest.warns(CorruptVideoWarning, match=rf"{name} .*Another video takes its place, as of \d of 10 so far"):
        row = data[0]
    clean = EvaluationVideos(videos, DenseSampling(12, 1), **SMALL)
    twins = [
        other for other in map(clean.__getitem__, range(8)) if torch.equal(other["pixel_values"], row["pixel_values"])
    ]
    assert [other["labels"] for other in twins] == [row["labels"]]
    with pytest.warns(CorruptVideoWarning):
        data[0], data[1]
    assert data.num_replaced == 2
    test = EvaluationVideos(mixed, UniformSampling(4), num_crops=3, **SMALL)
    for index in (0, 1):
        with pytest.raises(UnusableVideoError, match=f"{name} .*{BAD[name]}"):
            test[index]


def test_corrupt_videos_can_be_used_up_to_the_defect(videos, bad_files):
    mixed = with_bad(videos, bad_files, "half.mp4", "damaged.mp4", "empty.mp4")
    data = EvaluationVideos(mixed, UniformSampling(4), corrupt="loop", **SMALL)
    source = pictures(8)
    with pytest.warns(CorruptVideoWarning, match="The first 4 frames are used"):
        row = data[0]
    assert row["labels"] == 4 and torch.equal(row["pixel_values"], expected_row(source, [0, 1, 2, 2]))
    with (
        pytest.warns(CorruptVideoWarning, match="The first 3 frames are used"),
        pytest.warns(ShortVideoWarning, match=r"damaged\.mp4 has 3 frames, a clip needs 4; frames are repeated"),
    ):
        row = data[1]
    assert torch.equal(row["pixel_values"], expected_row(source, [0, 0, 1, 2]))
    mixed = with_bad(videos, bad_files, "empty.mp4")
    with pytest.raises(UnusableVideoError, match=r"empty\.mp4 "):
        EvaluationVideos(mixed, UniformSampling(4), corrupt="loop", **SMALL)[0]
    with pytest.warns(CorruptVideoWarning, match=r"empty\.mp4 .*Another video"):
        assert TrainingVideos(mixed, UniformSampling(4), corrupt="loop", **SMALL)[0]["labels"] != 4


def test_short_videos(videos):
    loop, refuse = (EvaluationVideos(videos, DenseSampling(4, 5), short=short, **SMALL) for short in ("loop", "raise"))
    skip = TrainingVideos(videos, DenseSampling(4, 5), short="skip", **SMALL)
    with pytest.warns(ShortVideoWarning, match="12 frames, a clip needs 16; frames are repeated"):
        row = loop[0]
    assert torch.equal(row["pixel_values"], expected_row(read_frames(videos.paths[0], np.arange), [0, 5, 10, 3]))
    with pytest.warns(ShortVideoWarning, match="Another"), pytest.raises(RuntimeError, match="None of the 8 videos"):
        skip[0]
    assert skip.num_replaced == 8
    with pytest.raises(UnusableVideoError, match="has 12 frames, a clip needs 16"):
        refuse[0]


def epochs(data, workers, seed=0, count=2, **kwargs):
    torch.manual_seed(seed)
    loader = DataLoader(data, batch_size=2, num_workers=workers, **kwargs)
    return [torch.cat([batch["pixel_values"] for batch in loader]) for _ in range(count)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_and_epochs_have_random_numbers_of_their_own(videos, bad_files):
    same = VideoList([videos.paths[3]] * 8, [3] * 8, videos.classes)
    data = TrainingVideos(same, UniformSampling(4), **SMALL)
    for kwargs in ({"workers": 0}, {"workers": 2}, {"workers": 2, "persistent_workers": True}):
        first, second = epochs(data, **kwargs)
        rows = [*first, *second]
        assert all(not torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i])
        again = epochs(data, **kwargs)
        assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert not torch.equal(epochs(data, 0, seed=1, count=1)[0], epochs(data, 0, seed=2, count=1)[0])

    test = EvaluationVideos(videos, UniformSampling(4), **SMALL)
    rows = [epochs(test, workers, seed)[epoch] for workers, seed, epoch in ((0, 0, 0), (2, 1, 0), (2, 1, 1))]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
    bad = TrainingVideos(with_bad(videos, bad_files, "empty.mp4", "text.mp4"), UniformSampling(4), **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CorruptVideoWarning)  # of the workers
        epochs(bad, 2, count=1)
    assert bad.num_replaced == 2


# with transformers


def tiny_model():
    names = dict(enumerate(["go left", "go right", "look left", "stay"]))
    backbone = {
        "model_type": "vit",
        "image_size": 24,
        "patch_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return ZeroI2VForVideoClassification(ZeroI2VConfig(backbone_config=backbone, **labels)).eval()


def test_trainer_takes_them(videos, tmp_path):
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    sampling = UniformSampling(8)
    trainer = Trainer(
        tiny_model(),
        arguments,
        train_dataset=TrainingVideos(videos, sampling, **SMALL),
        eval_dataset=EvaluationVideos(videos, sampling, **SMALL),
    )
    assert math.isfinite(trainer.train().training_loss)
    result = trainer.predict(trainer.eval_dataset)
    assert result.predictions.shape == (8, 4) and result.label_ids.tolist() == videos.labels


# video processors, which take the place of image processors, need torchvision
@pytest.mark.filterwarnings("ignore:Using `image_processor` for video classification is deprecated:FutureWarning")
def test_pipeline_on_a_file(videos, tmp_path):
    """transformers' processor gives the same pixels, without torchvision; the pipeline takes the first frames."""
    model = tiny_model()
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_mean=[0.5] * 3, image_std=[0.2] * 3
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline("video-classification", model=str(tmp_path))
    assert isinstance(classify.image_processor, VideoMAEImageProcessorPil) and classify.video_processor is None
    file = str(videos.paths[1])
    pixels = classify.preprocess(file)["pixel_values"]
    expected = expected_row(read_frames(file, np.arange), range(8))[None]
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        scores = model(expected).logits[0].softmax(-1)
    best = classify(file)[0]
    assert best["label"] == model.config.id2label[int(scores.argmax())]
    assert best["score"] == pytest.approx(scores.max().item(), abs=1e-6)
