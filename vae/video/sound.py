"""Soundtracks: decoding by time stamps, and encoding while the frames of a video are written."""

from __future__ import annotations

from fractions import Fraction
from typing import cast

import av
import av.error
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags as CodecFlags
from av.container import InputContainer, OutputContainer
from torch import Tensor
from torch.nn import functional

SAMPLE_RATE = 48_000  # samples a second of every soundtrack; Opus takes no 44,100
CHANNELS, LAYOUT = 2, "stereo"
BITS_PER_SECOND = 192_000
MAX_JITTER = 0.03  # seconds by which time stamps may be off without a gap in the sound


def silence(seconds: float) -> Tensor:
    """Return a silent soundtrack (CHANNELS, N)."""
    return torch.zeros(CHANNELS, round(seconds * SAMPLE_RATE))


def decode_sound(container: InputContainer, stream: AudioStream, origin: Fraction, seconds: float | None) -> Tensor:
    """Decode a soundtrack to (CHANNELS, N) in [-1, 1]: from `origin` on, a time stamp in seconds, for `seconds` or all.

    Time stamps decide where sound lies; gaps are silent. A soundtrack that is damaged ends where it breaks.
    """
    mono = stream.codec_context.channels == 1  # which is as loud on both sides as it was, not 3 dB lower
    resampler = av.AudioResampler(format="fltp", layout="mono" if mono else LAYOUT, rate=SAMPLE_RATE)
    pieces, written = list[Tensor](), 0
    end = None if seconds is None else round(seconds * SAMPLE_RATE)

    def place(frame: AudioFrame) -> None:
        nonlocal written
        samples = torch.from_numpy(frame.to_ndarray()).expand(CHANNELS, -1)
        begin = written
        if frame.pts is not None and frame.time_base is not None:
            stamp = round((frame.pts * frame.time_base - origin) * SAMPLE_RATE)
            begin = stamp if abs(stamp - written) > MAX_JITTER * SAMPLE_RATE or not pieces else written
        if begin < written:  # sound from before the first frame, or twice
            samples, begin = samples[:, written - begin :], written
        pieces.append(functional.pad(samples, (begin - written, 0)))
        written += pieces[-1].shape[1]

    try:
        for decoded in container.decode(stream):
            for frame in resampler.resample(decoded):
                place(frame)
            if end is not None and written >= end:
                break
        else:
            for frame in resampler.resample(None):
                place(frame)
    except av.error.FFmpegError:
        pass
    return torch.cat([silence(0), *pieces], 1)[:, :end].contiguous()


class SoundEncoder:
    """Encode a soundtrack (CHANNELS, N) in [-1, 1] into a container, little by little, as frames are written.

    What is missing at the end is silence; what goes on after the last frame is left out.
    """

    def __init__(self, container: OutputContainer, encoder: str, sound: Tensor):
        self.container, self.sound, self.encoded = container, sound, 0
        self.stream = cast(AudioStream, container.add_stream(encoder, rate=SAMPLE_RATE))
        context = self.stream.codec_context
        context.layout = LAYOUT
        context.bit_rate = BITS_PER_SECOND
        context.flags |= CodecFlags.bitexact

    def encode_until(self, seconds: Fraction) -> None:
        """Encode the sound up to a time."""
        end = round(seconds * SAMPLE_RATE)
        samples = self.sound[:, self.encoded : end]
        samples = functional.pad(samples, (0, end - self.encoded - samples.shape[1])).clamp(-1, 1).contiguous()
        if not samples.shape[1]:
            return
        frame = AudioFrame.from_ndarray(samples.float().numpy(), format="fltp", layout=LAYOUT)
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self.encoded, Fraction(1, SAMPLE_RATE)
        self.container.mux(self.stream.encode(frame))
        self.encoded = end

    def finish(self) -> None:
        """Encode what is buffered."""
        self.container.mux(self.stream.encode(None))
