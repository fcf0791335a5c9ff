package main

import (
	"encoding/json"
	"net/http"
	"testing"
)

func TestWork(t *testing.T) {
	calibrate()
	base := serve(t)
	for _, q := range []string{"?ms=20&mib=8", "?ms=20&idle=1", "?mib=4", ""} {
		resp, err := http.Get(base + "/work" + q)
		if err != nil {
			t.Fatal(err)
		}
		var did struct {
			Took  float64 `json:"took_ms"`
			Asked float64 `json:"asked_ms"`
			MiB   int     `json:"mib"`
		}
		err = json.NewDecoder(resp.Body).Decode(&did)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: status %d, %v", q, resp.StatusCode, err)
		}
		// It may take longer where the processor is shared, and not much less.
		if did.Took < did.Asked/2 {
			t.Errorf("%s: %+v", q, did)
		}
		if q == "?ms=20&mib=8" && did.MiB != 8 {
			t.Errorf("%s: %+v", q, did)
		}
	}
	for _, q := range []string{"?ms=x", "?ms=-1", "?mib=-1", "?ms=NaN", "?ms=1e12"} {
		resp, err := http.Get(base + "/work" + q)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: status %d", q, resp.StatusCode)
		}
	}
}
