package microvm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLastConsole has what the guest said, and nothing of its firmware.
func TestLastConsole(t *testing.T) {
	const firmware = "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2-debian-1.16.2-1)\r\nBooting from ROM..\x1bc\x1b[?7l\x1b[2J"
	for _, c := range []struct {
		console string
		want    []string
	}{
		{"", nil},
		{firmware, nil},
		{firmware + "[    0.512345] No working init found\r\nmore\r\n", []string{"[    0.512345] No working init found", "more"}},
		{firmware + "skep-agent: mounting /dev/vda: x\r\n", []string{"skep-agent: mounting /dev/vda: x"}},
		{firmware + "panic: y\n", []string{"panic: y"}},
		{strings.Repeat("x\n", 4096) + "[   12.000001] end\n", []string{"[   12.000001] end"}},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "console.log"), []byte(c.console), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastConsole(dir); !slices.Equal(got, c.want) {
			t.Errorf("of %.200q: %q, want %q", c.console, got, c.want)
		}
	}
}
