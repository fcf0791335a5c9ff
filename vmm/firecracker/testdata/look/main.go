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
	var files, core syscall.Rlimit
	for range 200 {
		_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
		_ = syscall.Getrlimit(syscall.RLIMIT_CORE, &core)
		if files.Max == 2048 && core.Max == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Println("open files", files.Max, "core", core.Max)
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
	fmt.Println("mknod:", syscall.Mknod("run/dev", syscall.S_IFCHR|0o600, 1<<8|3))
	if st, err := os.Stat("dev/kvm"); err == nil && st.Mode()&os.ModeCharDevice != 0 {
		fmt.Println("kvm: character device of", st.Sys().(*syscall.Stat_t).Uid)
	}
}
