package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/skep-dev/skep/guest"
)

// identity is who the function runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxAccounts bounds what is read of the image's passwd and group files.
const maxAccounts = 1 << 20

// lookUpUser resolves an image's user ("", "name", "uid", "name:group",
// "uid:gid") against the passwd and group files in root.
func lookUpUser(root, spec string) (identity, error) {
	id := identity{home: "/"}
	user, group, hasGroup := strings.Cut(spec, ":")
	if user == "" {
		user = "0"
	}
	uid, numeric := parseID(user)
	name := ""
	err := eachLine(root, "/etc/passwd", func(f []string) bool {
		if len(f) < 4 {
			return false
		}
		u, okU := parseID(f[2])
		if numeric && u != uid || !numeric && f[0] != user { // a number is never a name
			return false
		}
		g, okG := parseID(f[3])
		if !okU || !okG {
			return false
		}
		name, uid, id.gid = f[0], u, g
		if len(f) > 5 && f[5] != "" {
			id.home = f[5]
		}
		return true
	})
	if err != nil {
		return id, err
	}
	if name == "" && !numeric {
		return id, fmt.Errorf("the image's user %q is not in its /etc/passwd", user)
	}
	id.uid = uid
	if hasGroup && group != "" {
		return id, id.setGroup(root, group)
	}
	err = eachLine(root, "/etc/group", func(f []string) bool {
		if g, ok := field(f, 2); ok && len(f) > 3 && name != "" {
			for _, m := range strings.Split(f[3], ",") {
				if m == name {
					id.groups = append(id.groups, g)
				}
			}
		}
		return false
	})
	return id, err
}

func (id *identity) setGroup(root, group string) error {
	if g, ok := parseID(group); ok {
		id.gid = g
		return nil
	}
	found := false
	err := eachLine(root, "/etc/group", func(f []string) bool {
		g, ok := field(f, 2)
		if ok && f[0] == group {
			id.gid, found = g, true
		}
		return found
	})
	if err == nil && !found {
		err = fmt.Errorf("the image's group %q is not in its /etc/group", group)
	}
	return err
}

func field(f []string, i int) (uint32, bool) {
	if len(f) <= i {
		return 0, false
	}
	return parseID(f[i])
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

// eachLine calls f with the fields of each line until it returns true. A file
// that is not there has no lines.
func eachLine(root, path string, f func(fields []string) bool) error {
	file, err := openInRoot(root, path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	all := &io.LimitedReader{R: file, N: maxAccounts + 1}
	lines := bufio.NewScanner(all)
	lines.Buffer(nil, maxAccounts) // a group may have thousands of members
	for lines.Scan() {
		if all.N == 0 { // this line may be cut
			return fmt.Errorf("%s has more than %d bytes", path, maxAccounts)
		}
		if f(strings.Split(lines.Text(), ":")) {
			return nil
		}
	}
	return lines.Err()
}

// environment is the image's and the function's, with what every server
// expects, and more over that. HOSTNAME is not in it: in a clone it would be wrong.
func environment(s guest.Start, who identity, more ...string) []string {
	env := []string{"PATH=" + defaultPath, "HOME=" + who.home}
	at := map[string]int{"PATH": 0, "HOME": 1}
	all := slices.Clone(s.Env)
	if s.Port != 0 {
		all = append(all, "PORT="+strconv.Itoa(s.Port))
	}
	for _, e := range append(all, more...) {
		k, v, ok := strings.Cut(e, "=")
		if !ok || k == "" || k == "HOME" && v == "" { // an empty home is none, as runc has it
			continue
		}
		if i, dup := at[k]; dup {
			env[i] = e
			continue
		}
		at[k] = len(env)
		env = append(env, e)
	}
	return env
}
