package shim

import (
	"testing"
	"testing/synctest"
	"time"
)

// A guest is at rest when it has touched nothing new for a while, and one that always
// does is waited for no longer than that.
func TestAtRest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		touches time.Duration // for so long
		want    time.Duration
	}{
		{"at once", 0, restFor},
		{"after a request", time.Second, time.Second + restFor},
		{"never", time.Hour, restLimit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				faults := func() int64 { return int64(min(time.Since(began), tt.touches)) }
				if !atRest(nil, faults) {
					t.Error("it has ended")
				}
				if took := time.Since(began); took < tt.want || took > tt.want+2*restAsk {
					t.Errorf("at rest after %v, want %v", took, tt.want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ending := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(ending) })
		began := time.Now()
		if atRest(ending, func() int64 { return 0 }) || time.Since(began) != time.Second {
			t.Error("its end goes unseen")
		}
	})
}
