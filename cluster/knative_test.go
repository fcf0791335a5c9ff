package cluster

import "testing"

func TestWithImages(t *testing.T) {
	ours := map[string]string{"queue": "skep.local/knative-queue:v1", "envoy": "skep.local/knative-envoy:v1"}
	for in, want := range map[string]string{
		"  queue-sidecar-image: ko://knative.dev/serving/cmd/queue\n":                          "  queue-sidecar-image: skep.local/knative-queue:v1\n",
		"        image: registry.example/releases/serving/cmd/queue@sha256:0123456789abcdef\n": "        image: skep.local/knative-queue:v1\n",
		"  - image: \"registry.example:5000/envoy:v1.37-latest\"\n":                            "  - image: skep.local/knative-envoy:v1\n",
		"        image: registry.example/other:v1\n":                                           "        image: registry.example/other:v1\n",
		"    # image: registry.example/queue\n":                                                "    # image: registry.example/queue\n",
		"  imageName: registry.example/queue\n":                                                "  imageName: registry.example/queue\n",
	} {
		if got := withImages("a: b\n"+in+"c: d\n", ours); got != "a: b\n"+want+"c: d\n" {
			t.Errorf("%q became %q", in, got)
		}
	}
}

func TestKnativeDirIsWhole(t *testing.T) {
	t.Setenv(KnativeEnv, t.TempDir())
	if _, err := knativeDir(); err == nil {
		t.Error("an empty directory is taken for Knative")
	}
}
