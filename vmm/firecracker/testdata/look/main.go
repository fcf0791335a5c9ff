// Command look says what a process in a jail sees and can do.
package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

func main() {
	groups, _ := os.Getgroups()
	fmt.Println("user", os.Getuid(), os.Getgid(), "groups", groups)
	dir, _ := os.Getwd()
	var names []string
	entries, _ := os.ReadDir("/")
	for _, e := range entries {
		names = append(names, e.Name())
	}
	fmt.Println("in", dir, "of", names)
	// The limits are set from outside once the program runs.
	var files, core, size syscall.Rlimit
	for range 200 {
		_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
		_ = syscall.Getrlimit(syscall.RLIMIT_CORE, &core)
		_ = syscall.Getrlimit(syscall.RLIMIT_FSIZE, &size)
		if files.Max == 2048 && core.Max == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Println("open files", files.Max, "core", core.Max, "file size", size.Max)
	for _, name := range []string{"root.ext4", "state"} {
		b, err := os.ReadFile(name)
		if err != nil {
			b = []byte(err.Error())
		}
		fmt.Printf("%s: %s\n", name, b)
	}
	for _, name := range []string{"root.ext4", "memory", "run/new", "new"} {
		err := os.WriteFile(name, []byte("written"), 0o600)
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		fmt.Printf("write %s: %v\n", name, err)
	}
	hostile()
	fmt.Println("mknod:", syscall.Mknod("run/dev", syscall.S_IFCHR|0o600, 1<<8|3))
	if st, err := os.Stat("dev/kvm"); err == nil && st.Mode()&os.ModeCharDevice != 0 {
		fmt.Println("kvm: character device of", st.Sys().(*syscall.Stat_t).Uid)
	}
}

// hostile leaves in the run directory what a VMM might that its guest has taken
// over: a FIFO in place of its state, a link to a file of the host's in place of a
// socket, and as much else as it can.
func hostile() {
	if err := syscall.Mkfifo("run/state.new", 0o666); err != nil {
		fmt.Println("mkfifo:", err)
	}
	fmt.Println("replacing a socket:", errors.Join(os.Remove("run/faults.sock"), os.Symlink("/etc/passwd", "run/faults.sock")))
	if err := os.Symlink("faults.sock", "run/api.sock"); err != nil {
		fmt.Println("symlink:", err)
	}
	n := 0
	for ; n < 1000; n++ {
		if os.Mkdir(fmt.Sprintf("run/%d", n), 0o700) != nil {
			break
		}
	}
	fmt.Println("many directories:", n < 100)
}
