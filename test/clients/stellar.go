package clients

import (
	"context"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
)

// Experiment is one of STeLLAR's with its provider vhive: bursts of calls of gRPC.
type Experiment struct {
	Client    string   // the program
	Endpoints []string // host:port of a function that is called, and of those that it calls in turn
	Bursts    int
	Size      int // calls at once in each
}

// Stellar runs it, and returns the rows of its latencies.csv without the first, which
// names the columns: one for each call that was answered. Another ends the client with an
// error.
func (p Place) Stellar(ctx context.Context, e Experiment) (rows [][]string, err error) {
	var known []map[string]any
	for _, at := range e.Endpoints {
		known = append(known, map[string]any{"GatewayID": at, "FunctionMemoryMB": 128, "ImageSizeMB": 60, "PackageType": "Image"})
	}
	if err := p.write("endpoints/vHive.json", known); err != nil {
		return nil, err
	}
	err = p.write("experiment.json", map[string]any{"Sequential": true, "Provider": "vhive", "SubExperiments": []map[string]any{{
		"Title": "skep", "Bursts": e.Bursts, "BurstSizes": []int{e.Size}, "IATSeconds": 1, "IATType": "deterministic", "PackageType": "Image",
		"DesiredServiceTimes": []string{"0ms"}, "DataTransferChainLength": len(e.Endpoints),
		"Routes": []string{""}, // which the client gives to other providers only, and takes from each
	}}})
	if err != nil {
		return nil, err
	}
	results := filepath.Join(p.Dir, "results")
	if err := os.RemoveAll(results); err != nil {
		return nil, err
	}
	out, err := p.run(ctx, e.Client, "-s=false", "-g", "endpoints", "-c", "experiment.json", "-o", "results")
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(results, "*/*/latencies.csv"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("the client has left %d files latencies.csv, %v: %s", len(found), err, out)
	}
	f, err := os.Open(found[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := csv.NewReader(f).ReadAll()
	if err != nil || len(all) == 0 {
		return nil, fmt.Errorf("reading %s: %d lines, %v", found[0], len(all), err)
	}
	return all[1:], nil
}
