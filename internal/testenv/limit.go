package testenv

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// ScaleEnv names the environment variable by which the times are multiplied
// that tests wait at most, for machines that are slow: emulated ones.
const ScaleEnv = "SKEP_TEST_SCALE"

// Limit is for how long a test waits where an ordinary machine needs at most d.
func Limit(t testing.TB, d time.Duration) time.Duration {
	t.Helper()
	limit, err := scaled(d, os.Getenv(ScaleEnv))
	if err != nil {
		t.Fatal(err)
	}
	return limit
}

func scaled(d time.Duration, scale string) (time.Duration, error) {
	if scale == "" {
		return d, nil
	}
	f, err := strconv.ParseFloat(scale, 64)
	if err != nil || !(f >= 1 && f <= 1000) {
		return 0, fmt.Errorf("%s=%s: want a number from 1 to 1000", ScaleEnv, scale)
	}
	return time.Duration(float64(d) * f), nil
}
