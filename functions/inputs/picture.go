package inputs

import (
	"bytes"
	"encoding/binary"
	"image"
	"image/jpeg"
	"io"
	"math"
	"math/rand/v2"
)

// draw paints soft waves of colour with grain over them, as a photograph has:
// without it the files would be small and quick to read. at moves the waves.
func draw(r *rand.Rand, width, height, grain int, at float64) *image.YCbCr {
	img := image.NewYCbCr(image.Rect(0, 0, width, height), image.YCbCrSubsampleRatio420)
	light := wave{newLine(width, 7, at), newLine(height, 5, at*0.7)}
	blue, red := wave{newLine(width, 4, 2), newLine(height, 3, at)}, wave{newLine(width, 3, at), newLine(height, 6, 4)}
	for y := range height {
		for x := range width {
			img.Y[img.YOffset(x, y)] = level(128 + 40*light.at(x, y) + float64(r.IntN(2*grain+1)-grain))
		}
	}
	for y := 0; y < height; y += 2 {
		for x := 0; x < width; x += 2 {
			i := img.COffset(x, y)
			img.Cb[i], img.Cr[i] = level(128+30*blue.at(x, y)), level(128+30*red.at(x, y))
		}
	}
	return img
}

// wave is made of one along each side.
type wave struct{ across, down []float64 }

func (w wave) at(x, y int) float64 { return w.across[x] + w.down[y] + w.across[x]*w.down[y] }

func newLine(n int, turns, phase float64) []float64 {
	line := make([]float64, n)
	for i := range line {
		line[i] = math.Sin(float64(i)/float64(n)*turns + phase)
	}
	return line
}

func level(v float64) byte { return byte(max(0, min(255, v))) }

func writeImage(w io.Writer, seed uint64, width, height int) error {
	return jpeg.Encode(w, draw(dice(seed), width, height, 56, 0), &jpeg.Options{Quality: 96})
}

// Of every film.
const (
	filmWidth, filmHeight = 320, 240
	filmRate              = 25 // frames in a second
)

// writeFilm writes an AVI file (RIFF) of JPEG frames, which every player reads:
// a header, the frames, and an index of them.
func writeFilm(w io.Writer, seed uint64, frames int) error {
	r := dice(seed)
	var movie, index bytes.Buffer
	movie.WriteString("movi")
	largest := 0
	for i := range frames {
		var frame bytes.Buffer
		img := draw(r, filmWidth, filmHeight, 24, float64(i)/10)
		if err := jpeg.Encode(&frame, img, &jpeg.Options{Quality: 90}); err != nil {
			return err
		}
		largest = max(largest, frame.Len())
		index.WriteString("00dc")
		write32(&index, 0x10, movie.Len(), frame.Len()) // a key frame, where, how long
		writeChunk(&movie, "00dc", frame.Bytes())
	}
	var film bytes.Buffer
	film.WriteString("AVI ")
	writeChunk(&film, "LIST", filmHeader(frames, largest))
	writeChunk(&film, "LIST", movie.Bytes())
	writeChunk(&film, "idx1", index.Bytes())
	var all bytes.Buffer
	writeChunk(&all, "RIFF", film.Bytes())
	_, err := all.WriteTo(w)
	return err
}

// filmHeader is the list of the main header and those of the one stream.
func filmHeader(frames, largest int) []byte {
	var main, stream, format bytes.Buffer
	// Microseconds a frame, bytes a second, alignment, flags (it has an index),
	// frames, initial frames, streams, buffer size, size, reserved.
	write32(&main, 1_000_000/filmRate, largest*filmRate, 0, 0x10, frames, 0, 1, largest, filmWidth, filmHeight, 0, 0, 0, 0)
	stream.WriteString("vidsMJPG")
	// Flags, priority and language, initial frames, scale, rate, start, length,
	// buffer size, quality, sample size, and the rectangle in 16-bit numbers.
	write32(&stream, 0, 0, 0, 1, filmRate, 0, frames, largest, -1, 0, 0, filmHeight<<16|filmWidth)
	// A BITMAPINFOHEADER.
	write32(&format, 40, filmWidth, filmHeight, 24<<16|1)
	format.WriteString("MJPG")
	write32(&format, filmWidth*filmHeight*3, 0, 0, 0, 0)

	streams := bytes.NewBufferString("strl")
	writeChunk(streams, "strh", stream.Bytes())
	writeChunk(streams, "strf", format.Bytes())
	header := bytes.NewBufferString("hdrl")
	writeChunk(header, "avih", main.Bytes())
	writeChunk(header, "LIST", streams.Bytes())
	return header.Bytes()
}

// writeChunk writes a chunk of RIFF, padded to an even length.
func writeChunk(w *bytes.Buffer, id string, data []byte) {
	w.WriteString(id)
	write32(w, len(data))
	w.Write(data)
	if len(data)%2 == 1 {
		w.WriteByte(0)
	}
}

func write32(w *bytes.Buffer, values ...int) {
	for _, v := range values {
		w.Write(binary.LittleEndian.AppendUint32(nil, uint32(v)))
	}
}
