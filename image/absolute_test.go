package image

import "testing"

func TestAbsolute(t *testing.T) {
	t.Chdir("/")
	for ref, want := range map[string]string{
		"x.tar":                          "/x.tar",
		"a/x.tar.gz":                     "/a/x.tar.gz",
		"/x.tgz":                         "/x.tgz",
		"dir:a":                          "dir:/a",
		"dir:a:b/c":                      "dir:/a:b/c",
		"dir:../c/.":                     "dir:/c",
		"oci:layout":                     "oci:/layout",
		"oci:layout:v1":                  "oci:/layout:v1",
		"oci-archive:x:v1":               "oci-archive:/x:v1",
		"docker-archive:x:host:5000/n:t": "docker-archive:/x:host:5000/n:t",
		"localhost:5000/team/app:v3":     "localhost:5000/team/app:v3",
		"alpine":                         "alpine",
	} {
		if got, err := Absolute(ref); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", ref, got, err, want)
		}
	}
	for _, ref := range []string{"", "dir:", "./nothing", "UPPER"} {
		if got, err := Absolute(ref); err == nil {
			t.Errorf("%q: %q", ref, got)
		}
	}
	if Path("dir:/a:b") != "/a:b" || Path("alpine") != "" {
		t.Error("paths")
	}
}
