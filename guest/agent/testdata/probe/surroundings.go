package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// status is as it was before the program set any signal's mask.
var status, _ = os.ReadFile("/proc/self/status")

// limits are the resource limits' names by number (asm-generic/resource.h).
var limits = []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"}

// surroundings is all that a program finds itself in, a fact a key: what two
// runtimes give to one image can be compared by it.
func surroundings() map[string]string {
	facts := map[string]string{}
	for _, e := range os.Environ() {
		k, v, _ := strings.Cut(e, "=")
		facts["env "+k] = v
	}
	for _, p := range []string{"/", "/tmp", "/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/proc", "/sys", "/sys/fs/cgroup", "/run", "/etc"} {
		facts["file "+p] = describe(p)
	}
	entries, _ := os.ReadDir("/dev")
	for _, e := range entries {
		facts["file /dev/"+e.Name()] = describe("/dev/" + e.Name())
	}
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		facts["open "+name] = describe(fmt.Sprintf("/proc/self/fd/%d/", i))
		how := os.O_WRONLY
		if i == 0 {
			how = os.O_RDONLY
		}
		facts["reopen "+name] = reopen("/dev/"+name, how)
	}
	describeMounts(facts)
	describeProcess(facts)
	for _, f := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cgroup.procs", "/proc/sys/net/ipv4/ip_unprivileged_port_start"} {
		_, err := os.ReadFile(f)
		facts["readable "+f] = fmt.Sprint(err == nil)
	}
	return facts
}

func reopen(path string, how int) string {
	f, err := os.OpenFile(path, how, 0)
	if err != nil {
		return err.Error()
	}
	f.Close()
	return "works"
}

func describe(path string) string {
	link := strings.TrimSuffix(path, "/")
	if target, err := os.Readlink(link); err == nil && link == path {
		return "-> " + target
	}
	st := syscall.Stat_t{}
	if err := syscall.Stat(link, &st); err != nil {
		return err.Error()
	}
	kind := map[uint32]string{syscall.S_IFCHR: "char", syscall.S_IFBLK: "block", syscall.S_IFDIR: "directory", syscall.S_IFIFO: "pipe", syscall.S_IFREG: "file", syscall.S_IFSOCK: "socket"}[st.Mode&syscall.S_IFMT]
	text := fmt.Sprintf("%s %04o %d:%d", kind, st.Mode&0o7777, st.Uid, st.Gid)
	if kind == "char" || kind == "block" {
		text += fmt.Sprintf(" device %d:%d", st.Rdev>>8&0xfff, st.Rdev&0xff|st.Rdev>>12&^0xff)
	}
	return text
}

func describeMounts(facts map[string]string) {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		options := append(strings.Split(f[5], ","), strings.Split(g[2], ",")...)
		slices.Sort(options)
		facts["mount "+f[4]] = g[0] + " " + strings.Join(slices.Compact(options), ",")
	}
}

func describeProcess(facts map[string]string) {
	facts["directory"], _ = os.Getwd()
	facts["host name"], _ = os.Hostname()
	facts["pid"] = fmt.Sprint(os.Getpid())
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	facts["umask"] = fmt.Sprintf("%04o", umask)
	for _, f := range []string{"cgroup", "oom_score_adj"} {
		b, _ := os.ReadFile("/proc/self/" + f)
		facts[f] = strings.TrimSpace(string(b))
	}
	for line := range strings.Lines(string(status)) {
		k, v, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Uid", "Gid", "Groups", "SigBlk", "SigIgn", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"}, k) {
			facts["status "+k] = strings.Join(strings.Fields(v), " ")
		}
	}
	b, _ := os.ReadFile("/proc/self/stat")
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	facts["leads its group and session"] = fmt.Sprint(f[2] == f[3] && f[2] == fmt.Sprint(os.Getpid()))
	for i, name := range limits {
		var l syscall.Rlimit
		_ = syscall.Getrlimit(i, &l) // it stays zero, which is no limit that anybody sets
		facts["limit "+name] = fmt.Sprintf("%d %d", int64(l.Cur), int64(l.Max))
	}
	facts["limit NOFILE"] = openFiles()
}

// openFiles is the limit of open files that the program was started with. Go has
// raised its own since, but starts programs with the old one: it is read of one
// that has not begun to run.
func openFiles() string {
	runtime.LockOSThread() // whose the traced child is
	defer runtime.UnlockOSThread()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"probe"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Ptrace: true}})
	if err != nil {
		return err.Error()
	}
	_, _ = syscall.Wait4(pid, nil, 0, nil)
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	_ = syscall.Kill(pid, syscall.SIGKILL)
	_, _ = syscall.Wait4(pid, nil, 0, nil)
	_, after, _ := strings.Cut(string(b), "Max open files")
	if f := strings.Fields(after); len(f) > 1 {
		return f[0] + " " + f[1]
	}
	return ""
}
