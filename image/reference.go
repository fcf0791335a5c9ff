package image

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// The forms of a reference.
const (
	formRegistry      = "registry"
	formLayout        = "oci"
	formOCIArchive    = "oci-archive"
	formDockerArchive = "docker-archive"
	formArchive       = "archive" // a path alone: what it is shows in the file
	formDir           = "dir"
)

// reference is what a user names an image by.
type reference struct {
	form string
	path string         // of a file or directory
	tag  string         // within a layout or archive; "" for its only image
	name name.Reference // in a registry
}

// parseRef reads the forms that Fetcher.Fetch names. It opens nothing.
func parseRef(ref string) (reference, error) {
	if ref == "" || strings.ContainsAny(ref, "\r\n\x00") {
		return reference{}, errors.New("want a registry reference, or oci:DIR, oci-archive:FILE, docker-archive:FILE, dir:DIR")
	}
	form, rest, ok := strings.Cut(ref, ":")
	if ok && isForm(form) {
		return parsePath(form, rest)
	}
	if isArchiveName(ref) {
		return reference{form: formArchive, path: ref}, nil
	}
	n, err := name.ParseReference(ref)
	if err == nil && (ref[0] == '/' || ref[0] == '.') {
		err = errors.New("a registry's reference begins with a letter or a digit")
	}
	if err != nil {
		return reference{}, fmt.Errorf("%w; a file is named as oci:DIR, oci-archive:FILE, docker-archive:FILE or dir:DIR", err)
	}
	return reference{form: formRegistry, name: n}, nil
}

// Absolute makes the path in a reference absolute, for a store whose process has
// another working directory. Nothing is opened, and a registry's reference stays
// as it is.
func Absolute(ref string) (string, error) {
	r, err := parseRef(ref)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", ref, err)
	}
	if r.form == formRegistry {
		return ref, nil
	}
	path, err := filepath.Abs(r.path)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", ref, err)
	}
	switch r.form {
	case formArchive:
		return path, nil
	case formDir:
		return r.form + ":" + path, nil
	}
	if strings.Contains(path, ":") {
		return "", fmt.Errorf("image %q: its path is %s, and the first colon in it would begin a tag: move or link it", ref, path)
	}
	if r.tag != "" {
		path += ":" + r.tag
	}
	return r.form + ":" + path, nil
}

// Path is the file or directory on this host that a reference names; "" for a
// registry's.
func Path(ref string) string {
	r, err := parseRef(ref)
	if err != nil {
		return ""
	}
	return r.path
}

// parsePath cuts a tag off at the first colon: a tag of docker save may have
// more of them, and slashes (host:port/name:tag). A directory has no tag.
func parsePath(form, rest string) (reference, error) {
	r := reference{form: form, path: rest}
	if form != formDir {
		r.path, r.tag, _ = strings.Cut(rest, ":")
	}
	if r.path == "" {
		return r, fmt.Errorf("no path after %q", form+":")
	}
	return r, nil
}

func isForm(s string) bool {
	switch s {
	case formLayout, formOCIArchive, formDockerArchive, formDir:
		return true
	}
	return false
}
