"""Video files as the real corpora have them: .mp4 with H.264 pictures and AAC sound."""

from fractions import Fraction

import numpy as np

RATE = 44_100


def write_video(path, colours, per_second=10, pitch=440.0, sound=True):
    """One frame a colour (RGB), 64 x 48 pixels, with a stereo tone as long as the pictures, unless `sound` is false."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=per_second)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        track = container.add_stream("aac", rate=RATE, layout="stereo") if sound else None
        for colour in colours:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        if track is None:
            return
        time = np.arange(RATE * len(colours) // per_second) / RATE
        tone = 0.3 * np.sin(2 * np.pi * pitch * time).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, 0.5 * tone]), format="fltp", layout="stereo")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        container.mux(track.encode(frame))
        container.mux(track.encode())
