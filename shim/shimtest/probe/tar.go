package main

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// tarball does what `kubectl cp` asks of a tar in the container: "cf - FILE" writes a
// file, "-xmf - -C DIR" takes files.
func tarball(a []string) error {
	switch {
	case len(a) == 3 && a[0] == "cf":
		return pack(a[2], os.Stdout)
	case len(a) == 4 && a[0] == "-xmf":
		return unpack(os.Stdin, a[3])
	}
	return fmt.Errorf("want cf - FILE, or -xmf - -C DIR: %q", a)
}

func pack(path string, to io.Writer) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(to)
	if err := w.WriteHeader(&tar.Header{Name: path[1:], Mode: 0o644, Size: int64(len(b))}); err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	return w.Close()
}

func unpack(from io.Reader, dir string) error {
	r := tar.NewReader(from)
	for {
		h, err := r.Next()
		if err == io.EOF {
			_, err := io.Copy(io.Discard, from)
			return err
		}
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, h.Name), b, 0o644); err != nil {
			return err
		}
	}
}
