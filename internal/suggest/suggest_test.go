package suggest

import "testing"

func TestText(t *testing.T) {
	known := []string{"shop", "shop-2", "hello", "hello-python", "ab", "mmap"}
	for typed, want := range map[string]string{
		"shpo": "; did you mean shop?", "helo": "; did you mean hello?", "hello-pyhton": "; did you mean hello-python?",
		"shop-1": "; did you mean shop-2?", "SHOP": "; did you mean shop?", "ac": "; did you mean ab?",
		"xy": "", "unlike": "", "": "",
	} {
		if got := Text(typed, known); got != want {
			t.Errorf("%q: %q, want %q", typed, got, want)
		}
	}
}
