"""WAV files of all kinds have the same samples; what is cut off, or has another rate, is refused."""

import gc
import struct
import wave

import numpy as np
import pytest

from fusible.data.sequences.audio import AudioTokens, SpeechCommands
from fusible.data.sequences.wave_files import measure_wave, read_wave


pytest.importorskip("av")
RATE = 16_000
SAMPLES = (np.sin(np.arange(RATE) / 20) * 20_000).astype("<i2")
EXACT = SAMPLES / 2**15
GUID = bytes.fromhex("000000001000800000aa00389b71")  # what follows the tag in extensible files


def riff(payload, tag=1, bits=16, channels=1, rate=RATE, extensible=False, size=None):
    """A WAV file by hand, as the standard library writes integers only."""
    align = channels * bits // 8
    header = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, channels, rate, rate * align, align, bits)
    if extensible:
        header += struct.pack("<HHIH14s", 22, bits, 4, tag, GUID)
    size = len(payload) if size is None else size
    chunks = [b"fmt ", struct.pack("<I", len(header)), header, b"data", struct.pack("<I", size), payload]
    return b"RIFF" + struct.pack("<I", (28 + len(header) + size) % 2**32) + b"WAVE" + b"".join(chunks)


FILES = {
    "16 bits": riff(SAMPLES.tobytes()),
    "24 bits": riff((SAMPLES.astype("<i4") << 8).view("u1").reshape(-1, 4)[:, :3].tobytes(), bits=24),
    "32 bits": riff((SAMPLES.astype("<i4") << 16).tobytes(), bits=32),
    "float": riff(EXACT.astype("<f4").tobytes(), tag=3, bits=32),
    "double": riff(EXACT.astype("<f8").tobytes(), tag=3, bits=64),
    "extensible": riff(SAMPLES.tobytes(), extensible=True),
    "piped": riff(SAMPLES.tobytes(), size=0xFFFFFFFF),
    "piped by SoX": riff(SAMPLES.tobytes(), size=0x7FFFF000),
    "length left out": riff(SAMPLES.tobytes(), size=0),
    "stereo": riff(np.stack([SAMPLES, np.zeros_like(SAMPLES)], 1).tobytes(), channels=2),
    "8 bits": riff((SAMPLES // 256 + 128).astype("u1").tobytes(), bits=8),
}


@pytest.mark.parametrize("name", FILES)
def test_samples(tmp_path, name):
    (tmp_path / "a.wav").write_bytes(FILES[name])
    expected = {"stereo": EXACT / 2, "8 bits": SAMPLES // 256 / 128}.get(name, EXACT)
    np.testing.assert_array_equal(read_wave(tmp_path / "a.wav"), expected.astype(np.float32))
    assert measure_wave(tmp_path / "a.wav") == (RATE, RATE)
    for start, length in ((0, 10), (1000, 3000), (5001, 1), (15_990, 100)):
        part = read_wave(tmp_path / "a.wav", start, length)
        np.testing.assert_array_equal(part, expected[start : start + length].astype(np.float32))
    assert len(AudioTokens([tmp_path / "a.wav"], 4000)) == 4


REFUSED = {
    "cut": (FILES["16 bits"][:10_000], "is cut off"),
    "cut within a sample": (FILES["16 bits"][:10_001], "is cut off"),
    "header only": (FILES["16 bits"][:44], "has no samples"),
    "no samples": (riff(b""), "has no samples"),
    "nothing": (b"", "cannot be read as sound"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "cannot be read as sound"),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\nother.wav\n#EXT-X-ENDLIST\n", "cannot be read as sound"),
    "no numbers": (riff(np.full(100, np.nan, "<f4").tobytes(), tag=3, bits=32), "no finite numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(tmp_path, name):
    content, message = REFUSED[name]
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.wav.*{message}"):
        read_wave(tmp_path / "a.wav")
    if name != "no numbers":
        with pytest.raises(ValueError, match=rf"a\.wav.*{message}"):
            AudioTokens([tmp_path / "a.wav"], 10)


def test_sampling_rates(tmp_path):
    (tmp_path / "yes").mkdir()
    for name in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / name).touch()
    files = [tmp_path / "yes" / f"{rate}.wav" for rate in (8000, RATE)]
    for file, rate in zip(files, (8000, RATE), strict=True):
        with wave.open(str(file), "wb") as sound:
            sound.setparams((1, 2, rate, 0, "NONE", None))
            sound.writeframes(SAMPLES.tobytes())
    rows = SpeechCommands(tmp_path, "train")
    assert [file.name for file in rows.files] == ["16000.wav", "8000.wav"] and len(rows[0]["input_values"]) == RATE
    with pytest.raises(ValueError, match=r"8000\.wav has 8000 samples per second, but 16000 are wanted"):
        rows[1]
    assert SpeechCommands(tmp_path, "train", sampling_rate=8000)[1]["labels"] == 0
    assert AudioTokens(files[:1], 100).sampling_rate == 8000
    with pytest.raises(ValueError, match=r"16000\.wav has 16000 samples per second, but 8000 are wanted"):
        AudioTokens(files, 100)


def test_nothing_is_left_for_the_garbage_collector(tmp_path):
    """Decoders that are freed by it in a forked worker would wait for threads that only the parent has."""
    (tmp_path / "a.wav").write_bytes(FILES["24 bits"])
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        read_wave(tmp_path / "a.wav")
        gc.collect()
        left = [type(thing).__module__ for thing in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not [module for module in left if module.startswith("av.")]
