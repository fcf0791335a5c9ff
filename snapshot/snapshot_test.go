package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/api"
	"github.com/skep-dev/skep/internal/atomicfile"
	"github.com/skep-dev/skep/internal/filelock"
	"github.com/skep-dev/skep/vmm"
)

var update = flag.Bool("update", false, "write the golden files anew")

const testMiB = 8

func example() Manifest {
	return Manifest{
		Format: FormatVersion, ID: "hello-20260102-030405-0a0b0c0d", Function: "hello",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Reason: "ready",
		VMM:        vmm.Info{Name: "qemu", Version: "7.2.22", Accel: "tcg", Machine: "pc-q35-7.2 cpu=max"},
		CPU:        CPU{Vendor: "AuthenticAMD", Model: "EPYC", Features: []string{"avx", "sse"}},
		HostKernel: "6.1.0", GuestKernel: "k", Initramfs: "i", Agent: "1.0", ImageDigest: "sha256:aa", DiskDigest: "bb", Spec: "cc",
		VCPUs: 1, MemoryMiB: testMiB,
		Parts: map[string]Part{
			PartState:  {Size: 5, Digest: strings.Repeat("ab", 32)},
			PartMemory: {Size: testMiB << 20, Digest: strings.Repeat("cd", 32)},
		},
	}
}

func wanted(m Manifest) Want {
	return Want{Function: m.Function, ImageDigest: m.ImageDigest, DiskDigest: m.DiskDigest, GuestKernel: m.GuestKernel,
		Initramfs: m.Initramfs, Spec: m.Spec, VCPUs: m.VCPUs, MemoryMiB: m.MemoryMiB, VMM: m.VMM, CPU: m.CPU, HostKernel: m.HostKernel}
}

func TestGoldenManifest(t *testing.T) {
	path := filepath.Join("testdata", "manifest-v1.json")
	b, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, golden) {
		t.Errorf("encoded:\n%s\ngolden:\n%s", b, golden)
	}
	m, err := Decode(golden)
	if err != nil {
		t.Fatal(err)
	}
	w := wanted(example())
	if err := m.Match(w); err != nil {
		t.Error(err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, _ := example().Encode()
	for name, change := range map[string]func(string) string{
		"an unknown field":  func(s string) string { return strings.Replace(s, `"id"`, `"colour": 1, "id"`, 1) },
		"another format":    func(s string) string { return strings.Replace(s, `"format": 1`, `"format": 2`, 1) },
		"a path as id":      func(s string) string { return strings.Replace(s, `"hello-2026`, `"../hello-2026`, 1) },
		"no function":       func(s string) string { return strings.Replace(s, `"function": "hello"`, `"function": ""`, 1) },
		"a short digest":    func(s string) string { return strings.Replace(s, "abab", "ab", 1) },
		"an unknown part":   func(s string) string { return strings.Replace(s, `"state"`, `"../../etc/passwd"`, 1) },
		"a missing part":    func(s string) string { return strings.Replace(s, `"memory": {`, `"memory2": {`, 1) },
		"a wrong size":      func(s string) string { return strings.Replace(s, `8388608`, `8388609`, 1) },
		"a negative size":   func(s string) string { return strings.Replace(s, `"size": 5`, `"size": -5`, 1) },
		"no vcpus":          func(s string) string { return strings.Replace(s, `"vcpus": 1`, `"vcpus": 0`, 1) },
		"another letter":    func(s string) string { return strings.Replace(s, `"function": "hello"`, `"function": "jello"`, 1) },
		"a flipped bit":     func(s string) string { return strings.Replace(s, `"function": "h`, "\"function\": \"\xe8", 1) },
		"a tail":            func(s string) string { return s + "{}" },
		"half":              func(s string) string { return s[:len(s)/2] },
		"nothing":           func(string) string { return "" },
		"something endless": func(s string) string { return s + strings.Repeat(" ", maxManifest) },
	} {
		if _, err := Decode([]byte(change(string(good)))); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v, want ErrManifest", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good, _ := example().Encode()
	f.Add(good)
	f.Add([]byte(`{"format": 1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(again); err != nil {
			t.Fatalf("what was decoded does not decode again: %v", err)
		}
		if filepath.Base(m.ID) != m.ID || strings.HasPrefix(m.ID, ".") {
			t.Fatalf("id %q is not a plain name", m.ID)
		}
	})
}

func TestMatchNamesEveryDifference(t *testing.T) {
	m := example()
	for field, change := range map[string]func(*Want){
		"image digest":     func(w *Want) { w.ImageDigest = "x" },
		"disk digest":      func(w *Want) { w.DiskDigest = "x" },
		"guest kernel":     func(w *Want) { w.GuestKernel = "x" },
		"initramfs":        func(w *Want) { w.Initramfs = "x" },
		"settings digest":  func(w *Want) { w.Spec = "x" },
		"vcpus":            func(w *Want) { w.VCPUs = 2 },
		"memory_mib":       func(w *Want) { w.MemoryMiB = 512 },
		"vmm version":      func(w *Want) { w.VMM.Version = "8.0" },
		"vmm acceleration": func(w *Want) { w.VMM.Accel = "kvm" },
		"vmm machine":      func(w *Want) { w.VMM.Machine = "x" },
	} {
		w := wanted(m)
		change(&w)
		var mis *MismatchError
		if err := m.Match(w); !errors.As(err, &mis) || len(mis.Differences) != 1 || mis.Differences[0].Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	w := wanted(m)
	w.CPU = CPU{Vendor: "other", Model: "other"}
	if err := m.Match(w); err != nil {
		t.Errorf("under emulation the host's processor matters: %v", err)
	}
	m.VMM.Accel, w.VMM.Accel = "kvm", "kvm"
	var mis *MismatchError
	if err := m.Match(w); !errors.As(err, &mis) || len(mis.Differences) != 3 {
		t.Errorf("under kvm: %v, want vendor, model and features", err)
	}
	w.CPU = m.CPU
	w.CPU.Features = []string{"avx", "new", "sse"}
	if err := m.Match(w); err != nil {
		t.Errorf("a processor with more features: %v", err)
	}
	w.HostKernel = "6.12.1"
	if err := m.Match(w); err == nil || err.Error() != `snapshot `+m.ID+` does not match: host kernel is "6.1.0", want "6.12.1"` {
		t.Errorf("another kernel under kvm: %v", err)
	}
}

// A VMM whose versions of a line read each other's device state names the line.
func TestMatchVersionLine(t *testing.T) {
	m := example()
	m.VMM = vmm.Info{Name: "firecracker", Version: "1.16.1", Line: "1.16", Accel: "tcg", Machine: "m"}
	w := wanted(m)
	for _, test := range []struct{ version, line, want string }{
		{"1.16.1", "1.16", ""},
		{"1.16.9", "1.16", ""},
		{"1.17.0", "1.17", `vmm version line is "1.16", want "1.17"`},
		{"1.17.0", "", `vmm version is "1.16.1", want "1.17.0"`},
	} {
		w.VMM.Version, w.VMM.Line = test.version, test.line
		err := m.Match(w)
		if (err == nil) != (test.want == "") || err != nil && !strings.HasSuffix(err.Error(), ": "+test.want) {
			t.Errorf("%+v: %v", test, err)
		}
	}
	w.VMM = vmm.Info{Name: "qemu", Version: "7.2.22", Accel: "tcg", Machine: "q"}
	if err := m.Match(w); err == nil || !strings.Contains(err.Error(), `vmm is "firecracker", want "qemu"`) {
		t.Errorf("another VMM: %v", err)
	}
}

// publish makes a snapshot whose memory has a page of data every MiB.
func publish(t *testing.T, s *Store, change func(*Manifest)) (id string, memory []byte) {
	t.Helper()
	g, err := s.Stage("hello")
	if err != nil {
		t.Fatal(err)
	}
	memory = make([]byte, testMiB<<20)
	for i := 0; i < len(memory); i += 1 << 20 {
		for k := range 4096 {
			memory[i+k] = byte(rand.Uint32() | 1)
		}
	}
	for path, b := range map[string][]byte{g.State(): []byte("state"), g.Memory(): memory} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := example()
	if change != nil {
		change(&m)
	}
	out, err := g.Publish(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if !out.Usable || out.ID != g.ID {
		t.Errorf("published %+v", out)
	}
	return g.ID, memory
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func idsOf(t *testing.T, s *Store) []string {
	t.Helper()
	ids, err := s.IDs("hello")
	must(t, err)
	return ids
}

func listOf(t *testing.T, s *Store, function string) []api.Snapshot {
	t.Helper()
	list, err := s.List(function, nil)
	must(t, err)
	return list
}

func TestPublishAndUse(t *testing.T) {
	s := open(t, t.TempDir())
	id, memory := publish(t, s, nil)
	snap, reasons := s.Newest(t.Context(), wanted(example()))
	if snap == nil {
		t.Fatal(reasons)
	}
	defer snap.Release()
	got, err := os.ReadFile(snap.MemoryPath())
	if err != nil || !bytes.Equal(got, memory) {
		t.Errorf("memory differs from what was staged: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(snap.MemoryPath(), &st); err != nil {
		t.Fatal(err)
	}
	if max := int64(testMiB * 4096 * 4); st.Blocks*512 > max {
		t.Errorf("memory occupies %d bytes, want at most %d: its zeros are not holes", st.Blocks*512, max)
	}
	var sums []byte
	for i := 0; i < len(memory); i += 1 << 20 {
		sum := sha256.Sum256(memory[i : i+1<<20])
		sums = append(sums, sum[:]...)
	}
	sum := sha256.Sum256(sums)
	if p := snap.Manifest.Parts[PartMemory]; p.Digest != hex.EncodeToString(sum[:]) || p.Size != int64(len(memory)) {
		t.Errorf("part %+v", p)
	}
	if list := listOf(t, s, "hello"); len(list) != 1 || list[0].ID != id || list[0].DiskBytes <= 0 || list[0].VMM != "qemu 7.2.22 tcg" {
		t.Errorf("list %+v", list)
	}
}

func TestSurvivesReopenAndStagingDoesNot(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	id, _ := publish(t, s, nil)
	g, err := s.Stage("hello")
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, id, traceName, ".tmp-ws-1")
	whole := filepath.Join(dir, id, traceName, "ws")
	for _, path := range []string{half, whole} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(dir, "Not-Ours")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
	if _, err := os.Stat(g.Dir); err != nil {
		t.Errorf("what another process stages was removed: %v", err)
	}
	dead := filepath.Join(dir, atomicfile.TempPrefix+"dead")
	must(t, os.Mkdir(dead, 0o700))
	s = open(t, dir)
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("staged snapshot after a crash: %v", err)
	}
	listOf(t, s, "")
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a recording that a crash cut off: %v", err)
	}
	if _, err := os.Stat(whole); err != nil {
		t.Errorf("a recording: %v", err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("a directory that is not ours: %v", err)
	}
	snap, reasons := s.Newest(t.Context(), wanted(example()))
	if snap == nil || snap.Manifest.ID != id {
		t.Fatal(reasons)
	}
	snap.Release()
}

func TestNewestGivesReasons(t *testing.T) {
	s := open(t, t.TempDir())
	old, _ := publish(t, s, nil)
	time.Sleep(2 * time.Millisecond) // manifests' times are in milliseconds
	publish(t, s, func(m *Manifest) { m.VMM.Version = "9" })
	snap, reasons := s.Newest(t.Context(), wanted(example()))
	if snap == nil || snap.Manifest.ID != old || len(reasons) != 1 || !strings.Contains(reasons[0].Error(), `vmm version is "9", want "7.2.22"`) {
		t.Fatalf("%v, %v", snap, reasons)
	}
	snap.Release()
}

func TestCorruptionIsFound(t *testing.T) {
	flip := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 1)
			if _, err := f.ReadAt(b, 3); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 0x40
			if _, err := f.WriteAt(b, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		harm func(t *testing.T, dir string)
		want string
	}{
		"memory":    {flip(PartMemory), "memory is corrupted"},
		"state":     {flip(PartState), "state is corrupted"},
		"manifest":  {flip(manifestName), ErrManifest.Error()},
		"truncated": {func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, PartMemory), 100)) }, "has 100 bytes"},
		"missing":   {func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, PartState))) }, "no such file"},
		"link": {func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, PartState)))
			must(t, os.Symlink("/etc/passwd", filepath.Join(dir, PartState)))
		}, "not a regular file"},
		"forged stamp": {func(t *testing.T, dir string) {
			flip(PartMemory)(t, dir)
			must(t, os.WriteFile(filepath.Join(dir, stampName), []byte(`{"memory":{},"x":1}`), 0o600))
		}, "memory is corrupted"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			id, _ := publish(t, s, nil)
			tc.harm(t, filepath.Join(dir, id))
			s = open(t, dir)
			if name == "manifest" {
				if _, err := s.Manifest(id); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("manifest: %v", err)
				}
				if list := listOf(t, s, ""); len(list) != 1 || list[0].Usable {
					t.Errorf("list %+v", list)
				}
				must(t, s.Remove(id))
				return
			}
			for range 2 { // found, then remembered
				snap, reasons := s.Newest(t.Context(), wanted(example()))
				if snap != nil || len(reasons) != 1 || !strings.Contains(reasons[0].Error(), tc.want) {
					t.Fatalf("%v, %v; want %q", snap, reasons, tc.want)
				}
			}
			if err := s.Verify(t.Context(), id); err == nil {
				t.Error("verify finds nothing")
			}
			if list := listOf(t, s, "hello"); list[0].Usable || list[0].Problem == "" {
				t.Errorf("list %+v", list)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTouchedButEqualIsVerifiedAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	id, _ := publish(t, s, nil)
	must(t, os.Chtimes(filepath.Join(dir, id, PartMemory), time.Now(), time.Now()))
	s = open(t, dir)
	snap, reasons := s.Newest(t.Context(), wanted(example()))
	if snap == nil {
		t.Fatal(reasons)
	}
	snap.Release()
	seen, err := statParts(filepath.Join(dir, id))
	if err != nil || !readStamps(filepath.Join(dir, id)).equal(seen) {
		t.Errorf("the stamp is not renewed: %v", err)
	}
}

func TestCancelledCheckSaysNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	id, _ := publish(t, s, nil)
	s.Restored(id, errors.New("x")) // so that digests are checked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if snap, _ := s.Newest(ctx, wanted(example())); snap != nil {
		t.Fatal("checked although cancelled")
	}
	if snap, reasons := s.Newest(t.Context(), wanted(example())); snap == nil {
		t.Errorf("a cancelled check is held against it: %v", reasons)
	} else {
		snap.Release()
	}
}

func TestRestoreFailuresAddUp(t *testing.T) {
	s := open(t, t.TempDir())
	id, _ := publish(t, s, nil)
	use := func() bool {
		snap, _ := s.Newest(t.Context(), wanted(example()))
		if snap != nil {
			snap.Release()
		}
		return snap != nil
	}
	for i := range maxFailures {
		if !use() {
			t.Fatalf("not usable after %d failures", i)
		}
		s.Restored(id, errors.New("bad device state"))
	}
	if use() {
		t.Error("usable for ever")
	}
	must(t, s.Verify(t.Context(), id))
	if !use() {
		t.Error("not usable after it was verified")
	}
}

func TestRemoveWaitsForUsers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	id, _ := publish(t, s, nil)
	a, _ := s.Newest(t.Context(), wanted(example()))
	b, _ := s.Newest(t.Context(), wanted(example()))
	must(t, s.Remove(id))
	if snap, _ := s.Newest(t.Context(), wanted(example())); snap != nil {
		t.Error("a removed snapshot is given out")
	}
	if err := s.Remove(id); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	a.Release()
	a.Release() // must not count twice
	if _, err := os.Stat(b.MemoryPath()); err != nil {
		t.Errorf("gone while in use: %v", err)
	}
	b.Release()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A snapshot that was removed while an instance runs from it does not come back
// after a crash, and its files go; not those of one that another process uses.
func TestRemovedInUseStaysRemovedOverACrash(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	id, _ := publish(t, s, nil)
	kept, _ := publish(t, s, nil)
	used, err := s.Acquire(t.Context(), id, wanted(example()))
	must(t, err)
	must(t, s.Remove(id))
	for range 2 {
		if _, err := os.Stat(used.MemoryPath()); err != nil {
			t.Errorf("gone while in use: %v", err)
		}
		s = open(t, dir) // as another process
		if _, err := s.Acquire(t.Context(), id, wanted(example())); !errors.Is(err, ErrNotFound) {
			t.Errorf("a removed snapshot is given out: %v", err)
		}
		if err := s.Remove(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("a removed snapshot is removed again: %v", err)
		}
		if ids := idsOf(t, s); len(ids) != 1 || ids[0] != kept {
			t.Errorf("there are %v, want only %s", ids, kept)
		}
	}
	must(t, used.hold.Release()) // kill -9: the kernel lets go, and nobody looks after the files
	open(t, dir)
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != kept {
		t.Errorf("left: %v", left)
	}
}

// What one process publishes, removes or finds right, the others know at once.
func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	id, _ := publish(t, a, nil)
	snap, reasons := b.Newest(t.Context(), wanted(example()))
	if snap == nil || snap.Manifest.ID != id {
		t.Fatalf("what another process published is not found: %v", reasons)
	}
	seen, err := b.get(id)
	must(t, err)
	must(t, a.Remove(id))
	w := wanted(example())
	if _, err := b.use(t.Context(), seen, &w); !errors.Is(err, ErrNotFound) {
		t.Errorf("found before it was removed, used after: %v", err)
	}
	if list := listOf(t, b, ""); len(list) != 0 {
		t.Errorf("removed by another process, and there is %v", list)
	}
	if _, err := os.Stat(snap.MemoryPath()); err != nil {
		t.Errorf("removed by another process, and gone while in use: %v", err)
	}
	snap.Release()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left by its last user: %v", left)
	}
	id, _ = publish(t, b, nil)
	must(t, os.Chtimes(filepath.Join(dir, id, PartMemory), time.Now(), time.Now()))
	must(t, a.Verify(t.Context(), id)) // and notes what it looks like now
	claim, err := filelock.Claim(t.Context(), b.checking(id))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that a check would fail
	if snap, err = b.Acquire(ctx, id, wanted(example())); err != nil {
		t.Errorf("what another process has found right is checked again: %v", err)
	} else {
		snap.Release()
	}
	must(t, claim.Release())
}

// What cannot be noted on disk is not removed, and can be removed again.
func TestRemoveThatFailsChangesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	id, _ := publish(t, s, nil)
	mark := filepath.Join(dir, id, removedName)
	must(t, os.Mkdir(mark, 0o700)) // in the way of the mark
	if err := s.Remove(id); err == nil {
		t.Fatal("removed")
	}
	snap, err := s.Acquire(t.Context(), id, wanted(example()))
	if err != nil {
		t.Fatalf("removed in part: %v", err)
	}
	snap.Release()
	must(t, os.Remove(mark))
	must(t, s.Remove(id))
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A directory that somebody else has deleted is no snapshot any more.
func TestRemoveOfWhatIsGone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	id, _ := publish(t, s, nil)
	must(t, os.RemoveAll(filepath.Join(dir, id)))
	if err := s.Remove(id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if ids := idsOf(t, s); len(ids) != 0 {
		t.Errorf("still listed: %v", ids)
	}
}

// Who waits for another's check can give up.
func TestWaitingForACheckEnds(t *testing.T) {
	s := open(t, t.TempDir())
	id, _ := publish(t, s, nil)
	s.Restored(id, errors.New("x"))                           // so that digests are checked
	check, err := filelock.Claim(t.Context(), s.checking(id)) // under way, in whatever process
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Acquire(ctx, id, wanted(example())); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was cancelled", err)
	}
	must(t, check.Release())
	snap, err := s.Acquire(t.Context(), id, wanted(example()))
	if err != nil {
		t.Fatal(err)
	}
	snap.Release()
}

func TestPublishFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for name, stage := range map[string]func(*Staging){
		"no memory": func(g *Staging) { must(t, os.WriteFile(g.State(), nil, 0o600)) },
		"short memory": func(g *Staging) {
			must(t, os.WriteFile(g.State(), nil, 0o600))
			must(t, os.WriteFile(g.Memory(), nil, 0o600))
		},
		"a link": func(g *Staging) {
			must(t, os.WriteFile(g.State(), nil, 0o600))
			must(t, os.Symlink("/etc/passwd", g.Memory()))
		},
	} {
		g, err := s.Stage("hello")
		must(t, err)
		stage(g)
		if _, err := g.Publish(t.Context(), example()); err == nil {
			t.Errorf("%s: published", name)
		}
		if _, err := g.Publish(t.Context(), example()); err == nil {
			t.Errorf("%s: published the second time", name)
		}
		g.Abort()
	}
	if _, err := s.Stage("../x"); err == nil {
		t.Error("staged a path")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestDigestOfOddSizes(t *testing.T) {
	for _, size := range []int{0, 1, 4095, 4096, pieceSize - 1, pieceSize, pieceSize + 1, 3*pieceSize + 5000} {
		data := make([]byte, size)
		for i := range data {
			if i/5000%2 == 0 {
				data[i] = byte(i)
			}
		}
		var sums []byte
		for i := 0; i < size; i += pieceSize {
			sum := sha256.Sum256(data[i:min(size, i+pieceSize)])
			sums = append(sums, sum[:]...)
		}
		want := sha256.Sum256(sums)
		path := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(path, data, 0o600))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		for _, punch := range []bool{false, true, false} {
			got, n, err := digestFile(t.Context(), f, punch)
			if err != nil || got != hex.EncodeToString(want[:]) || n != int64(size) {
				t.Errorf("%d bytes, punch %v: %s, %d, %v", size, punch, got, n, err)
			}
		}
		after, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(after, data) {
			t.Errorf("%d bytes: punching changed the content", size)
		}
		f.Close()
	}
}

func TestHostCPU(t *testing.T) {
	c, err := HostCPU()
	if err != nil || len(c.Features) == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = parseCPU(strings.NewReader("processor\t: 0\nvendor_id\t: A\nmodel name\t: M 1\nflags\t\t: b a\n\nprocessor\t: 1\nvendor_id\t: B\n"))
	if err != nil || c.Vendor != "A" || c.Model != "M 1" || strings.Join(c.Features, ",") != "a,b" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestManifestTooLargeToReadIsNotWritten(t *testing.T) {
	m := example()
	m.Function = strings.Repeat("x", maxManifest)
	if b, err := m.Encode(); err == nil {
		t.Errorf("a manifest of %d bytes is written", len(b))
	}
}

func TestValidID(t *testing.T) {
	for id, ok := range map[string]bool{"": false, "a": true, "f-1": true, "-f": false, ".": false, "a/b": false, "A": false,
		strings.Repeat("a", 100): true, strings.Repeat("a", 101): false} {
		if ValidID(id) != ok {
			t.Errorf("%q: %v", id, !ok)
		}
	}
}
