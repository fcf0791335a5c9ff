// Package inputs makes what the functions of FunctionBench fetch from S3: real
// JPEG, JSON, CSV and AVI files, drawn and written by code, and the same on
// every machine. Each function has four, whose sizes differ. The S3 server in
// functions/s3 serves them; nothing of it is on the way of an invocation.
package inputs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/atomicfile"
)

// Bucket is where the functions look for their inputs.
const Bucket = "functionbench"

// version is part of the directory's mark: raise it when an input changes.
const version = "1\n"

// input is one object and what writes it.
type input struct {
	key   string
	write func(io.Writer) error
}

// all lists the inputs. The sizes are those that a guest of 256 MiB can work on
// under emulation within seconds, but the larger training files.
func all() []input {
	var list []input
	add := func(function string, n int, kind string, write func(io.Writer) error) {
		list = append(list, input{fmt.Sprintf("%s/%d.%s", function, n, kind), write})
	}
	for i, width := range []int{1200, 1440, 1680, 2240} {
		add("image_rotate", i+1, "jpg", func(w io.Writer) error { return writeImage(w, uint64(i), width, width*3/4) })
	}
	for i, hives := range []int{3000, 4000, 5000, 7500} {
		add("json_serdes", i+1, "json", func(w io.Writer) error { return writeHives(w, uint64(i), hives) })
	}
	for i, reviews := range []int{5000, 6000, 7000, 8000} {
		add("lr_training", i+1, "csv", func(w io.Writer) error { return writeReviews(w, uint64(i), reviews) })
	}
	for i, frames := range []int{40, 50, 60, 80} {
		add("video_processing", i+1, "avi", func(w io.Writer) error { return writeFilm(w, uint64(i), frames) })
	}
	return list
}

// Write makes all inputs below dir, in a directory of the bucket's name, unless
// they are there.
func Write(dir string) error {
	bucket := filepath.Join(dir, Bucket)
	mark := filepath.Join(dir, "."+Bucket)
	if b, err := os.ReadFile(mark); err == nil && string(b) == version {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("making the functions' inputs: %w", err)
	}
	for _, in := range all() {
		path := filepath.Join(bucket, filepath.FromSlash(in.key))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("making the functions' inputs: %w", err)
		}
		if err := atomicfile.Write(path, 0o644, in.write); err != nil {
			return fmt.Errorf("making input %s: %w", in.key, err)
		}
	}
	return atomicfile.Write(mark, 0o644, func(w io.Writer) error {
		_, err := io.WriteString(w, version)
		return err
	})
}
