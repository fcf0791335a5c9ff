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

// What invitro's loader asks of a function on Dirigent, and what it reads of the answer.
func TestDirigent(t *testing.T) {
	calibrate()
	base := serve(t)
	for requested, status := range map[string]int{"20": http.StatusOK, "0": http.StatusOK, "x": http.StatusBadRequest, "-1": http.StatusBadRequest} {
		req, err := http.NewRequest(http.MethodPost, base, nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{"requested_cpu": requested, "requested_memory": "170", "multiplier": "80", "function": "trace-func-0"} {
			req.Header.Set(name, value)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var did struct {
			Status, Function, MachineName string
			ExecutionTime                 int64
		}
		err = json.NewDecoder(resp.Body).Decode(&did)
		resp.Body.Close()
		if resp.StatusCode != status || status == http.StatusOK && (err != nil || did.Status != "OK" || did.Function != "trace-func-0" || did.MachineName == "") {
			t.Errorf("%s: status %d, %v, %+v", requested, resp.StatusCode, err, did)
		}
		if requested == "20" && did.ExecutionTime < 10_000 {
			t.Errorf("20 ms took %d µs", did.ExecutionTime)
		}
	}
}
