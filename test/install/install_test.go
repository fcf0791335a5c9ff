package install

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

var releases = []string{"bookworm", "trixie"}

// A package installs, upgrades, is removed and purged in a fresh Debian, with its
// daemon as a service.
func TestInstall(t *testing.T) {
	needPackages(t)
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			r := newRoot(t, release)
			installIn(r, func(string) { r.says("skep ls --json", "[") })
		})
	}
}

// The same, with a function in real microVMs that is there again each time.
func TestInstallRuns(t *testing.T) {
	needPackages(t)
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			r := newRoot(t, release)
			installIn(r, func(when string) {
				if when == "installed" {
					r.run("skep deploy functions/hello")
				}
				r.run("curl -sS --fail --max-time 60 -H 'Host: hello.localhost' http://127.0.0.1:7080/")
				// A record is written when its answer has gone.
				eventually(t, "the record", func() error { _, err := r.try(`skep records --json | grep -q '"status":200'`); return err })
			})
		})
	}
}

// installIn does all that is done to a package. The daemon is used whenever it runs.
func installIn(r *root, use func(when string)) {
	r.run("apt-get -qq update && mkdir -p /etc/containerd") // which containerd would bring
	old, new := r.give(deb(r.T, older)), r.give(deb(r.T, newer))
	was := r.files()

	// All that it needs is there.
	r.says("apt-get install -y "+old, "skep setup")
	r.says("skep version", "skep "+older+" ")
	r.says("systemctl is-enabled skep || true", "disabled")
	r.says("systemctl is-active skep || true", "inactive")
	r.says("skep config", "/var/cache/skep/kernels", "file /etc/skep/config.toml")
	r.says("skep doctor || true", "skep setup")
	r.says("man -w skep-deploy skep-service-install", "man1/skep-deploy.1.gz")
	r.says("man skep | cat", "serverless functions in microVMs", "skep-demo(1)")
	r.says(`bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader skep 2>/dev/null || _comp_load skep; complete -p skep'`, "__start_skep")
	r.says(`zsh -fc 'autoload -Uz compinit; compinit -u -D; print $_comps[skep]'`, "_skep")
	r.says(`fish -c 'complete -C "skep dep"'`, "deploy")

	r.says("skep setup", "guest kernel /var/cache/skep/kernels/")
	r.says("skep doctor", "ok    qemu", "ok    guest kernel")
	r.run("printf 'keep_log_mib = 3\\n' >>/etc/skep/config.toml")
	r.run("systemctl enable --now skep")
	use("installed")
	r.says("skep service status", "Active: active (running)", "lib/systemd/system/skep.service")
	pid := r.run("systemctl show -P MainPID skep")

	// A runtime of containerd's, where its program would be.
	r.run("skep containerd install --no-kernel --containerd-version 1.7.24")
	r.run("test -x /usr/local/bin/containerd-shim-skep-v2")

	// The new daemon has what the old one had.
	r.says("dpkg --install "+new, "skep containerd install")
	r.says("skep version", "skep "+newer+" ", "daemon "+newer+" ")
	if now := r.run("systemctl show -P MainPID skep"); now == pid || now == "0\n" {
		r.Errorf("the daemon was %s and is %s", pid, now)
	}
	r.says("skep config", "keep_log_mib", "3")
	use("upgraded")

	// Removed: nothing of it runs, and what it made is there.
	r.run("apt-get remove -y skep")
	r.says("systemctl is-active skep || true", "inactive")
	r.run("! pgrep -x skep && ! pgrep qemu-system && test ! -e /usr/lib/skep && test ! -e /usr/bin/skep && test ! -e /usr/local/bin/containerd-shim-skep-v2")
	r.run("test -e /var/lib/skep/skep.db && test -d /var/cache/skep/kernels && grep -q 'keep_log_mib = 3' /etc/skep/config.toml")
	if left := strings.TrimSpace(r.run("ls /run/netns 2>/dev/null || true")); left != "" {
		r.Errorf("network namespaces are left: %s", left)
	}

	// And there again.
	r.run("apt-get install -y " + new)
	r.says("systemctl is-enabled skep", "enabled")
	r.run("systemctl start skep")
	use("installed again")

	// Purged, while somebody has a daemon of their own: what it uses stays.
	r.run("systemctl stop skep")
	r.run("systemd-run --quiet --unit=own skep up")
	eventually(r.T, "the daemon to answer", func() error { _, err := r.try("skep version | grep -q '^daemon " + newer + "'"); return err })
	r.says("apt-get purge -y skep", "a daemon runs in /var/lib/skep")
	r.run("test -e /var/lib/skep/skep.db && systemctl stop own")
	r.run("apt-get install -y " + new)
	r.says("skep version", "skep "+newer+" ")
	r.run("apt-get purge -y skep")
	var left, lost []string
	for name := range r.files() {
		if !was[name] {
			left = append(left, name)
		}
	}
	now := r.files()
	for name := range was {
		if !now[name] {
			lost = append(lost, name)
		}
	}
	if len(left)+len(lost) > 0 {
		r.Errorf("after the purge there are also %v, and no more %v", left, lost)
	}
	r.run("! systemctl --failed --plain --no-legend | grep skep")
}

// deb is the .deb of a version.
func deb(t *testing.T, version string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(built(t, version), "*.deb"))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("want one .deb, there are %v", found)
	}
	if err != nil {
		t.Fatal(err)
	}
	return found[0]
}
