package testenv

import (
	"testing"
	"time"
)

func TestScaled(t *testing.T) {
	for _, test := range []struct {
		scale string
		want  time.Duration // 0 for an error
	}{{"", time.Second}, {"1", time.Second}, {"2.5", 2500 * time.Millisecond}, {"0", 0}, {"NaN", 0}, {"fast", 0}, {"1e9", 0}} {
		got, err := scaled(time.Second, test.scale)
		if got != test.want || (err != nil) != (test.want == 0) {
			t.Errorf("a second by %q is %v, %v; want %v", test.scale, got, err, test.want)
		}
	}
}
