package trace

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// ReadHuawei2023 reads a day of Huawei's traces of 2023 (README_data_release_2023.md of
// sir-lab/data-release), public or private cloud: a line for each minute with the day,
// the second, and a cell for each function, empty where there is nothing. requests are
// the calls; delay, which the public cloud's trace has not, is the mean time that an
// invocation ran, in seconds; memory is the memory of all its instances together in MB,
// and instances is how many those were. All but requests may be nil: a function without
// a delay takes a tenth of a second, without memory mib.
//
// Means are all that there is of durations: half and twice the mean of a function's
// minutes are taken for the range around their quantiles.
func ReadHuawei2023(requests, delay, memory, instances io.Reader, mib float64) (*Trace, error) {
	t := &Trace{}
	names, err := wide(requests, func(names []string) {
		for _, n := range names {
			t.Functions = append(t.Functions, Function{App: n, Name: n, Trigger: TriggerHTTP, MemoryMiB: mib, Duration: Quantiles{0.05, 0.05, 0.1, 0.1, 0.1, 0.2, 0.2}})
		}
	}, func(minute, f int, v float64) error {
		if v < 0 || v > maxCalls {
			return fmt.Errorf("%v calls in a minute: want 0 to %g", v, maxCalls)
		}
		t.add(f, minute, uint64(math.Round(v)))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("requests: %w", err)
	}
	index := map[string]int{}
	for i, n := range names {
		index[n] = i
	}
	byFunction := func(r io.Reader, what string) (map[int][]float64, error) {
		out := map[int][]float64{}
		if r == nil {
			return out, nil
		}
		var at []int
		_, err := wide(r, func(names []string) {
			for _, n := range names {
				i, ok := index[n]
				if !ok {
					i = -1
				}
				at = append(at, i)
			}
		}, func(_, column int, v float64) error {
			if v < 0 {
				return fmt.Errorf("it is %v", v)
			}
			if f := at[column]; f >= 0 {
				out[f] = append(out[f], v)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		return out, nil
	}
	took, err := byFunction(delay, "delay")
	if err != nil {
		return nil, err
	}
	mb, err := byFunction(memory, "memory")
	if err != nil {
		return nil, err
	}
	pods, err := byFunction(instances, "instances")
	if err != nil {
		return nil, err
	}
	for i := range t.Functions {
		f := &t.Functions[i]
		if v := took[i]; len(v) > 0 {
			f.Duration = aroundMeans(v)
		}
		if v := mb[i]; len(v) > 0 {
			f.MemoryMiB = min(max(1, mean(v)/max(1, mean(pods[i]))), 1<<20)
		}
	}
	return t, nil
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(max(1, len(v)))
}

func aroundMeans(v []float64) (q Quantiles) {
	s := quantilesOf(v)
	q = Quantiles{s[0] / 2, s[1] / 2, s[2], s[3], s[4], s[5] * 2, s[6] * 2}
	q.tidy()
	return q
}

// wide reads a table with the columns day, time (in seconds) and one for each function.
// begin is told the functions, cell each cell that is not empty, with the minute since
// the first line.
func wide(r io.Reader, begin func(functions []string), cell func(minute, column int, v float64) error) ([]string, error) {
	header, rows, err := table(r, 3, "day", "time")
	if err != nil {
		return nil, err
	}
	names := header[2:]
	begin(names)
	first, last := 0.0, -1
	return names, rows(func(row []string) error {
		at, err := number(row[1])
		if err != nil {
			return err
		}
		if last < 0 {
			first = at
		}
		minute := int((at - first) / 60)
		if minute < last || minute > maxMinutes || at < first {
			return fmt.Errorf("time is %v s after %v s: want ascending seconds, a year at most", at, first)
		}
		last = minute
		for i, s := range row[2:] {
			if s == "" || strings.EqualFold(s, "nan") {
				continue
			}
			v, err := number(s)
			if err == nil {
				err = cell(minute, i, v)
			}
			if err != nil {
				return fmt.Errorf("function %s: %w", names[i], err)
			}
		}
		return nil
	})
}
