package choose_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skep-dev/skep/config"
	"github.com/skep-dev/skep/guest/initramfs"
	"github.com/skep-dev/skep/vmm/choose"
)

// TestGuestIsRemembered finds what was found before, until one of its files is
// another.
func TestGuestIsRemembered(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	elf := "\x7fELF\x02\x01\x01" + string(make([]byte, 4096))
	cfg := config.Config{DataDir: filepath.Join(dir, "data"), Kernel: put("kernel", elf)}
	agent := put("agent", "an agent")
	t.Setenv(initramfs.AgentEnv, agent)
	find := func() (kernel string, ramdisk initramfs.Initramfs) {
		t.Helper()
		k, i, err := choose.Guest(cfg, filepath.Join(dir, "initramfs"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(i.Path); err != nil {
			t.Error(err)
		}
		return k.Digest, i
	}
	k1, i1 := find()
	time.Sleep(1100 * time.Millisecond) // files that have just changed are not relied on
	find()
	kept, _ := filepath.Glob(filepath.Join(cfg.DataDir, "memo", "*"))
	if len(kept) != 1 {
		t.Fatalf("%v are kept: want one answer", kept)
	}
	if k2, i2 := find(); k1 != k2 || i1.Digest != i2.Digest {
		t.Errorf("%s and %+v, then %s and %+v", k1, i1, k2, i2)
	}
	put("agent", "an AGENT")
	if k2, i2 := find(); k1 != k2 || i1.Digest == i2.Digest {
		t.Error("another agent makes no other initramfs")
	}
	put("kernel", elf+"another")
	if k2, _ := find(); k1 == k2 {
		t.Error("the kernel has changed unseen")
	}
	_, i3 := find()
	if err := os.Remove(i3.Path); err != nil {
		t.Fatal(err)
	}
	find()
}
