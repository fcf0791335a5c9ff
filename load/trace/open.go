package trace

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Options say how to read a trace.
type Options struct {
	Day       int     // of a trace that has a file for each, from 1; 0: the first that is there
	MemoryMiB float64 // of functions of which the trace does not say; 0: 170, the median of Azure's of 2019
}

// Open reads a published trace from where it was unpacked, and finds out whose it is:
//
//	a directory with invocations_per_function_md.anon.d01.csv … and its siblings (Azure 2019)
//	a directory with invocations.csv, durations.csv, memory.csv (the same format: skep's own, invitro's)
//	a directory with requests_minute/day_000.csv … (Huawei 2023)
//	a file whose header is app,func,end_timestamp,duration (Azure 2021)
//
// Files may be compressed with gzip, and end in .gz then.
func Open(path string, o Options) (*Trace, error) {
	if o.MemoryMiB == 0 {
		o.MemoryMiB = 170
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the trace: %w", err)
	}
	o2019 := func(invocations, durations, memory string) (*Trace, error) {
		return withFiles(path, []string{invocations, durations, memory}, func(r []io.Reader) (*Trace, error) {
			return ReadAzure2019(r[0], r[1], r[2])
		})
	}
	switch {
	case !info.IsDir():
		return withFiles(filepath.Dir(path), []string{strings.TrimSuffix(filepath.Base(path), ".gz")}, func(r []io.Reader) (*Trace, error) {
			return ReadAzure2021(r[0], o.MemoryMiB)
		})
	case there(path, InvocationsFile):
		return o2019(InvocationsFile, DurationsFile, MemoryFile)
	}
	for day := max(1, o.Day); day <= 366; day++ {
		name := fmt.Sprintf("invocations_per_function_md.anon.d%02d.csv", day)
		if there(path, name) {
			return o2019(name, fmt.Sprintf("function_durations_percentiles.anon.d%02d.csv", day), fmt.Sprintf("app_memory_percentiles.anon.d%02d.csv", day))
		}
		csv := fmt.Sprintf("day_%03d.csv", day-1)
		if there(path, filepath.Join("requests_minute", csv)) {
			var names []string
			for _, metric := range []string{"requests_minute", "function_delay_minute", "memory_limit_minute", "instances_minute"} {
				names = append(names, filepath.Join(metric, csv))
			}
			return withFiles(path, names, func(r []io.Reader) (*Trace, error) {
				return ReadHuawei2023(r[0], r[1], r[2], r[3], o.MemoryMiB)
			})
		}
		if o.Day > 0 {
			break
		}
	}
	return nil, fmt.Errorf("%s is no trace that is known%s: want a directory with %s, with invocations_per_function_md.anon.d01.csv (Azure 2019) or with requests_minute/day_000.csv (Huawei 2023), or a file of Azure's trace of 2021",
		path, ofDay(o.Day), InvocationsFile)
}

func ofDay(day int) string {
	if day == 0 {
		return ""
	}
	return fmt.Sprintf(", or has no day %d", day)
}

func there(dir, name string) bool {
	for _, suffix := range []string{"", ".gz"} {
		if _, err := os.Stat(filepath.Join(dir, name+suffix)); err == nil {
			return true
		}
	}
	return false
}

// withFiles opens files, of which all but the first may be missing, and reads them.
func withFiles(dir string, names []string, read func([]io.Reader) (*Trace, error)) (t *Trace, err error) {
	readers := make([]io.Reader, len(names))
	for i, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			f, err = os.Open(filepath.Join(dir, name+".gz"))
		}
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the trace: %w", err)
		}
		defer f.Close()
		readers[i] = f
		if strings.HasSuffix(f.Name(), ".gz") {
			if readers[i], err = gzip.NewReader(f); err != nil {
				return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
			}
		}
	}
	if t, err = read(readers); err != nil {
		return nil, fmt.Errorf("reading the trace %s: %w", filepath.Join(dir, names[0]), err)
	}
	if t.Calls() == 0 {
		return nil, fmt.Errorf("the trace %s has no invocation", filepath.Join(dir, names[0]))
	}
	return t, nil
}
