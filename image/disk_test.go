package image

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/testenv"
)

// TestManyFiles needs more than one group of inodes.
func TestManyFiles(t *testing.T) {
	testenv.Need(t, "mkfs")
	disk := filepath.Join(t.TempDir(), diskFile)
	err := open(t, Options{}).writeDisk(t.Context(), disk, nil, func(w *tar.Writer) error {
		for i := range 33_000 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/f%d", i%7, i), Mode: 0o644}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	checkDisk(t, disk)
	if got := inspect(t, disk, "stat /d6/f32997"); !strings.Contains(got, "regular") {
		t.Errorf("a file is missing: %s", got)
	}
}

// acl is an access control list as getxattr shows it.
func acl(entries ...[3]uint32) string {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

func TestExtendedAttributes(t *testing.T) {
	testenv.Need(t, "mkfs")
	const none = 0xffffffff
	list := acl([3]uint32{1, 6, none}, [3]uint32{2, 4, 1000}, [3]uint32{4, 4, none}, [3]uint32{16, 4, none}, [3]uint32{32, 4, none})
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	e := entry{tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.system.posix_acl_access": list,
		"SCHILY.xattr.security.selinux": "label", "SCHILY.xattr.com.apple.quarantine": "q", "SCHILY.xattr.trusted.overlay.opaque": "y",
		"SCHILY.xattr.user.long": strings.Repeat("v", 1000),
	}}, "x"}
	old := entry{tar.Header{Name: "old", Typeflag: tar.TypeReg}, ""}
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, e, old)))
	img, err := s.Fetch(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkDisk(t, img.Disk)
	got := inspect(t, img.Disk, "ea_list /f")
	for _, want := range []string{"security.capability (20)", "system.posix_acl_access (28)", "user.long (1000)"} {
		if !strings.Contains(got, want) {
			t.Errorf("the disk lacks %s:\n%s", want, got)
		}
	}
	for _, not := range []string{"selinux", "apple", "overlay"} {
		if strings.Contains(got, not) {
			t.Errorf("the disk has %s:\n%s", not, got)
		}
	}
	disk, err := diskACL([]byte(list))
	if want := "\x01\x00\x00\x00" + "\x01\x00\x06\x00" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00" + "\x10\x00\x04\x00" + "\x20\x00\x04\x00"; err != nil || string(disk) != want {
		t.Errorf("the list becomes %x, %v: want %x", disk, err, want)
	}
	for _, bad := range []string{"", "\x01\x00\x00\x00", list[:len(list)-1]} {
		if _, err := diskACL([]byte(bad)); err == nil {
			t.Errorf("%x is taken for an access control list", bad)
		}
	}
}

func FuzzDiskACL(f *testing.F) {
	f.Add([]byte(acl([3]uint32{2, 4, 1000})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := diskACL(b); err == nil && (len(out) > len(b) || out[0] != 1) {
			t.Errorf("%x gives %x", b, out)
		}
	})
}

// TestMount has a kernel read a disk: everything that the layers say is there,
// as they say it.
func TestMount(t *testing.T) {
	testenv.Need(t, "root")
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	list := acl([3]uint32{1, 6, 0xffffffff}, [3]uint32{2, 4, 1000}, [3]uint32{4, 4, 0xffffffff}, [3]uint32{16, 4, 0xffffffff}, [3]uint32{32, 4, 0xffffffff})
	long := strings.Repeat("l", 255)
	big := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB
	es := []entry{
		{tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 1, Gid: 2}, ""},
		{tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, ""},
		{tar.Header{Name: "suid", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 100_000, Gid: 200_000, PAXRecords: map[string]string{
			paxXattr + "security.capability": capability, paxXattr + "system.posix_acl_access": list,
		}}, "x"},
		{tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "suid"}, ""},
		{tar.Header{Name: "sym", Typeflag: tar.TypeSymlink, Linkname: "etc/" + long + "/x"}, ""},
		{tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
		{tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		file("etc/"+long, big), file("empty", ""),
	}
	for i := range 300 {
		es = append(es, file(fmt.Sprintf("many/%d-%s", i, long[:200]), fmt.Sprint(i)))
	}
	s := open(t, Options{})
	ref, _ := writeLayout(t, imageOf(t, layerOf(t, es...)))
	img, err := s.Fetch(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	root := mount(t, img.Disk)
	for name, want := range map[string]string{"etc/" + long: big, "empty": "", "hard": "x", "many/299-" + long[:200]: "299"} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != want {
			t.Errorf("%.20s holds %d bytes, %v: want %d", name, len(b), err, len(want))
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "sym")); err != nil || to != "etc/"+long+"/x" {
		t.Errorf("the link is to %s, %v", to, err)
	}
	for name, want := range map[string]unix.Stat_t{
		"etc": {Mode: unix.S_IFDIR | 0o750, Uid: 1, Gid: 2, Nlink: 2}, "tmp": {Mode: unix.S_IFDIR | 0o1777, Nlink: 2},
		"suid": {Mode: unix.S_IFREG | 0o6755, Uid: 100_000, Gid: 200_000, Nlink: 2},
		"null": {Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3), Nlink: 1}, "pipe": {Mode: unix.S_IFIFO | 0o600, Nlink: 1},
	} {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(root, name), &st)
		got := unix.Stat_t{Mode: st.Mode, Uid: st.Uid, Gid: st.Gid, Nlink: st.Nlink, Rdev: st.Rdev}
		// The list's mask is the group's bits.
		if err != nil || got != want && name != "suid" || name == "suid" && (got.Uid != want.Uid || got.Mode&0o7700 != 0o6700 || got.Nlink != 2) {
			t.Errorf("%s is %+v, %v: want %+v", name, got, err, want)
		}
		if err == nil && st.Mtim.Sec != 1e9 && name != "hard" {
			t.Errorf("%s is of %d", name, st.Mtim.Sec)
		}
	}
	for name, want := range map[string]string{"security.capability": capability, "system.posix_acl_access": list} {
		b := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(root, "hard"), name, b)
		if err != nil || string(b[:max(n, 0)]) != want {
			t.Errorf("%s is %x, %v: want %x", name, b[:max(n, 0)], err, want)
		}
	}
	if es, err := os.ReadDir(filepath.Join(root, "many")); err != nil || len(es) != 300 {
		t.Errorf("%d files, %v", len(es), err)
	}
}

func mount(t *testing.T, disk string) string {
	t.Helper()
	root := t.TempDir()
	if out, err := exec.Command("mount", "-t", "ext4", "-o", "loop,ro", disk, root).CombinedOutput(); err != nil {
		t.Skipf("mounting a disk: %v: %s; to run this test: allow loop devices (modprobe loop)", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
			t.Errorf("unmounting: %v: %s", err, out)
		}
	})
	return root
}

// FuzzLayer takes bytes for a layer, through to the disk: an error or a disk, and
// never a panic.
func FuzzLayer(f *testing.F) {
	add := func(es ...entry) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, e := range es {
			e.Size = int64(len(e.body))
			if err := w.WriteHeader(&e.Header); err != nil {
				f.Fatal(err)
			}
			if _, err := w.Write([]byte(e.body)); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(b.Bytes())
	}
	add(file("a", "x"), file("d/b", ""), entry{tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "a"}, ""})
	add(entry{tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: strings.Repeat("x/", 50)}, ""}, file("s/b", "y"))
	add(entry{tar.Header{Typeflag: tar.TypeDir, Name: "d/", PAXRecords: map[string]string{paxXattr + "user.a": strings.Repeat("v", 100)}}, ""}, file("d/.wh..wh..opq", ""))
	add(entry{tar.Header{Typeflag: tar.TypeBlock, Name: "lost+found", Devmajor: 1 << 20, Devminor: 1 << 20}, ""})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(d)
		layer := filepath.Join(d, "layer")
		if err := os.WriteFile(layer, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := &Store{dir: d, opts: Options{MaxBytes: 1 << 20, MaxEntries: 100}}
		tr := newTree(100, 1<<20)
		err = eachEntry(t.Context(), layer, func(_ int, h *tar.Header, _ io.Reader) error { return tr.hide(h) })
		if err == nil {
			err = eachEntry(t.Context(), layer, func(j int, h *tar.Header, _ io.Reader) error { return tr.apply(0, j, h) })
		}
		if err != nil {
			return
		}
		count := &counter{p: func(string, int64, int64) {}}
		_ = s.writeDisk(t.Context(), filepath.Join(d, diskFile), nil, func(w *tar.Writer) error {
			return tr.write(newEntryWriter(t.Context(), w, count), []string{layer})
		})
	})
}
