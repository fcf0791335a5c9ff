// Package initramfs packs what a guest's kernel starts with: the agent as
// /init, and the modules that find the machine's disk and network, in the order
// in which they must be loaded. The same parts give the same bytes.
package initramfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/skep-dev/skep/guest/agent"
	"github.com/skep-dev/skep/guest/kernel"
	"github.com/skep-dev/skep/internal/atomicfile"
)

// Needed are the modules that a guest needs, where its kernel has not built
// them in: both virtio transports, so that one initramfs serves every VMM.
var Needed = []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "ext4", "overlay"}

// Generation is the driver by which a guest learns that it is a clone of another,
// where its kernel has one: Debian's cloud kernel does not.
const Generation = "vmgenid"

// Initramfs is an initramfs on disk.
type Initramfs struct {
	Path   string
	Digest string // "sha256:…"
	Agent  string // version of the agent in it
	// Generation says that the driver of that name is in it or in the kernel.
	Generation bool
	// Sources are the files that it was made of, but for the names below Modules.
	Sources []string
}

// Build packs agent (see FindAgent) and the modules that k needs, and publishes
// the archive in dir under its digest. One that is there is used; several processes
// may do so at once.
func Build(dir, agentBinary string, k kernel.Kernel) (Initramfs, error) {
	generation, err := Has(k, Generation)
	if err != nil {
		return Initramfs{}, fmt.Errorf("making the initramfs: %w", err)
	}
	wanted := Needed
	if generation {
		wanted = append(slices.Clone(Needed), Generation)
	}
	b, sources, err := pack(agentBinary, k, wanted)
	if err != nil {
		return Initramfs{}, fmt.Errorf("making the initramfs: %w", err)
	}
	sum := sha256.Sum256(b)
	i := Initramfs{Path: filepath.Join(dir, "initramfs-"+hex.EncodeToString(sum[:8])+".cpio"), Digest: "sha256:" + hex.EncodeToString(sum[:]), Agent: agent.Version, Generation: generation, Sources: sources}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Initramfs{}, err
	}
	if err := atomicfile.Clean(dir); err != nil {
		return Initramfs{}, err
	}
	if old, err := os.ReadFile(i.Path); err == nil && bytes.Equal(old, b) {
		return i, nil
	}
	return i, atomicfile.WriteFile(i.Path, b, 0o644)
}

// Pack returns the archive: newc, uncompressed, because the guest would spend
// longer on decompressing it than the host on reading it.
func Pack(agentBinary string, k kernel.Kernel) ([]byte, error) {
	return PackInit(agentBinary, k, Needed)
}

// PackInit packs another program as /init, with the modules that it wants: the
// same archive as Pack's otherwise.
func PackInit(program string, k kernel.Kernel, wanted []string) ([]byte, error) {
	b, _, err := pack(program, k, wanted)
	return b, err
}

func pack(program string, k kernel.Kernel, wanted []string) (packed []byte, sources []string, err error) {
	init, err := os.ReadFile(program)
	if err != nil {
		return nil, nil, err
	}
	modules, err := resolve(k.Modules, wanted)
	if err != nil {
		return nil, nil, err
	}
	sources = []string{program}
	var buf bytes.Buffer
	a := archive{w: cpio.NewWriter(&buf)}
	for _, d := range []string{"dev", "proc", "sys", "lower", "rw", "root", strings.TrimPrefix(agent.ModuleDir, "/")} {
		a.add(d, cpio.TypeDir|0o755, nil)
	}
	var order strings.Builder
	for _, m := range modules {
		path := strings.TrimPrefix(agent.ModuleDir, "/") + "/" + m.name + ".ko"
		a.add(path, cpio.TypeReg|0o644, m.data)
		sources = append(sources, m.path)
		fmt.Fprintln(&order, "/"+path)
	}
	a.add(strings.TrimPrefix(agent.ModuleList, "/"), cpio.TypeReg|0o644, []byte(order.String()))
	a.add("init", cpio.TypeReg|0o755, init)
	return buf.Bytes(), sources, errors.Join(a.err, a.w.Close())
}

// archive writes entries until the first error.
type archive struct {
	w   *cpio.Writer
	err error
}

func (a *archive) add(name string, mode cpio.FileMode, data []byte) {
	if a.err != nil {
		return
	}
	if a.err = a.w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(data)), Links: 1}); a.err == nil {
		_, a.err = io.Copy(a.w, bytes.NewReader(data))
	}
}

// AgentEnv names the environment variable with the path of the agent's binary.
const AgentEnv = "SKEP_AGENT"

// FindAgent finds the agent's binary: where AgentEnv says, beside the running
// program, or in ../libexec of that.
func FindAgent() (string, error) {
	if p := os.Getenv(AgentEnv); p != "" {
		if _, err := os.Stat(p); err != nil {
			return "", fmt.Errorf("the agent's binary, by %s: %w", AgentEnv, err)
		}
		return p, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if p, err := filepath.EvalSymlinks(self); err == nil {
		self = p
	}
	beside := filepath.Dir(self)
	for _, dir := range []string{beside, filepath.Join(beside, "..", "libexec")} {
		p := filepath.Join(dir, "skep-agent")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf("no skep-agent beside %s or in ../libexec: `make build` and `CGO_ENABLED=0 go install github.com/skep-dev/skep/cmd/...` make both, or set %s to its path", self, AgentEnv)
}
