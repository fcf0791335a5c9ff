"""video_processing: a film from S3, frame by frame made grey.

The films are AVI files of JPEG frames, which OpenCV reads from and writes to
files; the files are in the guest's memory.
"""

import os
from tempfile import TemporaryDirectory

import cv2
import s3
from serve import serve


def grey(n):
    with TemporaryDirectory() as folder:
        film, result = os.path.join(folder, "film.avi"), os.path.join(folder, "grey.avi")
        with open(film, "wb") as f:
            f.write(s3.get(f"video_processing/{n}.avi"))
        reader = cv2.VideoCapture(film, cv2.CAP_OPENCV_MJPEG)
        size = [int(reader.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        codec = cv2.VideoWriter_fourcc(*"MJPG")
        writer = cv2.VideoWriter(result, cv2.CAP_OPENCV_MJPEG, codec, 25.0, size, False)
        frames = light = 0
        while True:
            there, frame = reader.read()
            if not there:
                break
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            writer.write(frame)
            frames += 1
            light += float(frame.mean())
        reader.release()
        writer.release()
        if not frames:
            raise ValueError(f"no frames in film {n}")
        return {"size": size, "frames": frames, "brightness": round(light / frames, 2), "bytes": os.path.getsize(result)}


if __name__ == "__main__":
    cv2.setNumThreads(1)
    serve(grey)
