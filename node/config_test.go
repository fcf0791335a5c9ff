package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A stub resolver's address is no use to a guest: those behind it are.
func TestHostNameservers(t *testing.T) {
	for name, tc := range map[string]struct {
		files []string
		want  []string
	}{
		"plain":       {[]string{"# who\nnameserver 192.0.2.1\n\tnameserver\t192.0.2.2 # too\noptions ndots:2\n"}, []string{"192.0.2.1", "192.0.2.2"}},
		"stub":        {[]string{"nameserver 127.0.0.53\n", "nameserver 192.0.2.3\n"}, []string{"192.0.2.3"}},
		"first wins":  {[]string{"nameserver 192.0.2.1\n", "nameserver 192.0.2.3\n"}, []string{"192.0.2.1"}},
		"only IPv4":   {[]string{"nameserver 2001:db8::1\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\n"}, []string{"192.0.2.1"}},
		"no address":  {[]string{"nameserver\nnameserver nowhere\n"}, nil},
		"none at all": {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			paths := []string{filepath.Join(dir, "absent")}
			for i, content := range tc.files {
				path := filepath.Join(dir, string(rune('a'+i)))
				if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				paths = append(paths, path)
			}
			if got := hostNameservers(paths...); !slices.Equal(got, tc.want) {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}
