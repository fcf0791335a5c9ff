package firecracker

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Release is the one that Fetch gets unless told otherwise: the newest that
// this package was tried with.
const Release = "1.16.1"

// releases is where the project publishes its own.
const releases = "https://github.com/firecracker-microvm/firecracker/releases/download"

// Sizes that a download may have, in bytes.
const (
	maxTarball = 256 << 20
	maxProgram = 64 << 20
)

// FetchOptions say what to fetch. The zero value is the official release.
type FetchOptions struct {
	Release  string                      // "1.16.1"; "" is Release
	From     string                      // URL below which releases lie, as v1.16.1/firecracker-v1.16.1-x86_64.tgz; "" is the project's own
	Progress func(step string, a ...any) // nil for none
	Client   interface {
		Do(*http.Request) (*http.Response, error)
	} // nil is http.DefaultClient
}

var releaseRE = regexp.MustCompile(`^\d+\.\d+\.\d+$`)

// Fetch puts the two programs of an official release, verified by the checksum
// published with it, at dir/v<release>. When they are there, nothing is
// downloaded.
func Fetch(ctx context.Context, dir string, opts FetchOptions) (Host, error) {
	if opts.Release == "" {
		opts.Release = Release
	}
	if opts.From == "" {
		opts.From = releases
	}
	if opts.Progress == nil {
		opts.Progress = func(string, ...any) {}
	}
	if opts.Client == nil {
		opts.Client = http.DefaultClient
	}
	if !releaseRE.MatchString(opts.Release) {
		return Host{}, fmt.Errorf("release %q: want one such as %s", opts.Release, Release)
	}
	target := filepath.Join(dir, "v"+opts.Release)
	if h, err := probe(ctx, Options{Binary: filepath.Join(target, binary)}); err == nil {
		return h, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Host{}, err
	}
	tmp, err := os.MkdirTemp(dir, ".fetch-")
	if err != nil {
		return Host{}, err
	}
	defer os.RemoveAll(tmp)
	if err := fetch(ctx, tmp, opts); err != nil {
		return Host{}, fmt.Errorf("fetching Firecracker %s: %w", opts.Release, err)
	}
	if err := os.RemoveAll(target); err != nil { // half of one, or damaged
		return Host{}, err
	}
	if err := os.Rename(filepath.Join(tmp, "programs"), target); err != nil {
		return Host{}, err
	}
	return probe(ctx, Options{Binary: filepath.Join(target, binary)})
}

// fetch downloads, verifies and unpacks into tmp/programs.
func fetch(ctx context.Context, tmp string, opts FetchOptions) error {
	name := fmt.Sprintf("firecracker-v%s-x86_64.tgz", opts.Release)
	url := strings.TrimSuffix(opts.From, "/") + "/v" + opts.Release + "/" + name
	var sums strings.Builder
	if _, err := download(ctx, opts, url+".sha256.txt", &limited{&sums, 4096}); err != nil {
		return err
	}
	want, _, _ := strings.Cut(strings.TrimSpace(sums.String()), " ")
	if b, err := hex.DecodeString(want); err != nil || len(b) != sha256.Size {
		return fmt.Errorf("the checksum at %s.sha256.txt is %.80q: want a SHA-256", url, sums.String())
	}
	opts.Progress("fetching %s", url)
	tarball, err := os.Create(filepath.Join(tmp, name))
	if err != nil {
		return err
	}
	defer tarball.Close()
	sum, err := download(ctx, opts, url, &limited{tarball, maxTarball})
	if err != nil {
		return err
	}
	if sum != strings.ToLower(want) {
		return fmt.Errorf("%s has the SHA-256 %s, and %s was published: it was damaged on its way, or is not the release", url, sum, want)
	}
	if _, err := tarball.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return unpack(tarball, filepath.Join(tmp, "programs"), opts.Release)
}

// download writes what is at the URL and returns its SHA-256.
func download(ctx context.Context, opts FetchOptions, url string, w io.Writer) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("it takes over ten minutes"))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := opts.Client.Do(req)
	if err != nil {
		return "", fmt.Errorf("%w; where this host does not reach it, fetch the release on another one, and put its firecracker and jailer side by side on the PATH", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, resp.Status)
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, h), resp.Body); err != nil {
		return "", fmt.Errorf("%s: %w", url, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// limited refuses to write more than it has left.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		return 0, errors.New("it is larger than any release")
	}
	return l.w.Write(b)
}

// unpack takes the two programs out of a release's archive, in which they carry
// version and architecture in their names.
func unpack(r io.Reader, dir, release string) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	defer z.Close()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	found := map[string]bool{}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpacking: %w", err)
		}
		for _, program := range []string{binary, "jailer"} {
			if h.Typeflag != tar.TypeReg || path.Base(h.Name) != fmt.Sprintf("%s-v%s-x86_64", program, release) {
				continue
			}
			if err := install(filepath.Join(dir, program), t); err != nil {
				return err
			}
			found[program] = true
		}
	}
	if !found[binary] || !found["jailer"] {
		return errors.New("unpacking: the archive lacks firecracker or jailer")
	}
	return nil
}

func install(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(&limited{f, maxProgram}, r)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Find returns the path of the binary of that name, or, where the PATH has none
// of it, of the newest release that Fetch put below dir. "" says that there is
// neither.
func Find(name, dir string) string {
	if name == "" {
		name = binary
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	if name != binary {
		return ""
	}
	var best string
	var newest version
	fetched, _ := filepath.Glob(filepath.Join(dir, "v*", binary)) // the pattern is good
	for _, path := range fetched {
		var v version
		if n, _ := fmt.Sscanf(filepath.Base(filepath.Dir(path)), "v%d.%d.%d", &v.major, &v.minor, &v.patch); n == 3 && newest.before(v) {
			best, newest = path, v
		}
	}
	return best
}
