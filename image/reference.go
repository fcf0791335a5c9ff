package image

import (
	"errors"
	"fmt"
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
