package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// withConfig is an image whose configuration is changed.
func withConfig(t *testing.T, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	img := imageOf(t, layerOf(t, file("serve", "#!")))
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	conf = conf.DeepCopy()
	change(conf)
	if img, err = mutate.ConfigFile(img, conf); err != nil {
		t.Fatal(err)
	}
	return img
}

func variables(n, size int) (env []string) {
	for i := range n {
		env = append(env, fmt.Sprintf("V%d=%s", i, strings.Repeat("x", size)))
	}
	return env
}

// TestConfigIsBounded: what is larger than a guest takes is refused before any
// layer is read, and what is taken can be read again.
func TestConfigIsBounded(t *testing.T) {
	for _, c := range []struct {
		name string
		conf Config
		want string // of the error; "" for none
	}{
		{"1,100 variables of 1,000 bytes", Config{Env: variables(1100, 1000)}, "1048576 are allowed"},
		{"1,000 variables of 1,000 bytes", Config{Env: variables(1000, 1000)}, ""},
		{"many small variables", Config{Env: variables(50_000, 1)}, ""},
		{"as many arguments as fit, all empty", Config{Cmd: make([]string, 90_000)}, ""},
		{"more than fit", Config{Cmd: make([]string, 100_000)}, "1048576 are allowed"},
		{"what JSON makes long", Config{Env: []string{"A=" + strings.Repeat("\x01", 120_000)}}, ""},
		{"a long variable", Config{Env: variables(1, 131_100)}, "Linux takes 131071"},
		{"a long command", Config{Cmd: []string{strings.Repeat("x", 200_000)}}, "Linux takes 131071"},
		{"a NUL", Config{Env: []string{"A=a\x00b"}}, "NUL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, Options{})
			ref, _ := writeLayout(t, withConfig(t, func(f *v1.ConfigFile) { f.Config.Env, f.Config.Cmd = c.conf.Env, c.conf.Cmd }))
			read := false
			img, err := s.Fetch(t.Context(), ref, func(string, int64, int64) { read = true })
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrDamaged) || read {
					t.Errorf("error %v, layers read: %v: want one with %q before that", err, read, c.want)
				}
				nothingLeft(t, s)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if again, err := s.Get(img.Digest); err != nil || len(again.Config.Env)+len(again.Config.Cmd) != len(c.conf.Env)+len(c.conf.Cmd) {
				t.Errorf("read again: %v, %d variables", err, len(again.Config.Env))
			}
		})
	}
}

// TestWritersKeepTheReadersLimits: what a reader would refuse is not written.
func TestWritersKeepTheReadersLimits(t *testing.T) {
	dir := t.TempDir()
	m := meta{Ref: strings.Repeat("x", maxMeta)}
	if err := writeMeta(dir, m); !errors.Is(err, ErrTooLarge) {
		t.Errorf("writing an image.json that is too large: %v", err)
	}
	m.Ref = strings.Repeat("x", maxMeta-1000)
	if err := writeMeta(dir, m); err != nil {
		t.Fatal(err)
	}
	if got, err := readMeta(filepath.Join(dir, metaFile)); err != nil || len(got.Ref) != len(m.Ref) {
		t.Errorf("reading the largest: %v", err)
	}
	// The largest configuration that is taken, laid out as image.json is.
	worst := Config{Cmd: make([]string, maxConfig/(pointer+3))}
	if b, err := json.MarshalIndent(meta{Image: Image{Config: worst}}, "", "  "); err != nil || len(b) > maxMeta-(64<<10) {
		t.Errorf("it takes %d bytes of %d, %v", len(b), maxMeta, err)
	}
	if err := os.WriteFile(filepath.Join(dir, ConfigFile), []byte(`{"env":["`+strings.Repeat("x", maxMeta)+`"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(dir); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a directory's configuration that is too large: %v", err)
	}
}
