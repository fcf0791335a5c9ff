package userfaultfd

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func FuzzDecodeHandover(f *testing.F) {
	f.Add([]byte(`[{"base_host_virt_addr":4194304,"size":8192,"offset":0,"page_size":4096,"page_size_kib":4096}]`))
	f.Add([]byte(`[{"base_host_virt_addr":0,"size":4096,"page_size_kib":4}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, msg []byte) {
		regions, complete, err := decodeHandover(msg)
		if err != nil && complete {
			t.Error("complete and wrong")
		}
		if complete {
			if err := CheckRegions(regions); err != nil {
				t.Error(err)
			}
			if _, again, _ := decodeHandover(append(bytes.Clone(msg), ' ')); !again {
				t.Error("white space makes it incomplete")
			}
		}
	})
}

func FuzzDecodeEvents(f *testing.F) {
	msg := make([]byte, 2*msgSize)
	msg[0], msg[msgSize] = byte(KindFault), byte(KindRemove)
	binary.NativeEndian.PutUint64(msg[16:], 0x7f0000001000)
	f.Add(msg)
	f.Fuzz(func(t *testing.T, p []byte) {
		evs := make([]Event, 4)
		n, err := decodeEvents(p, evs)
		if n > len(evs) || n > len(p)/msgSize || (err == nil && n != min(len(p)/msgSize, len(evs))) {
			t.Errorf("%d events of %d bytes: %v", n, len(p), err)
		}
	})
}

func TestFeatureNames(t *testing.T) {
	if got := (FeatureMove | FeaturePagefaultFlagWP | 1<<40).String(); got != "pagefault-flag-wp,move,bit 40" {
		t.Error(got)
	}
}
