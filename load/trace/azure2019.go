package trace

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// maxMinutes of a trace that is read: a year.
const maxMinutes = 366 * 24 * 60

// maxCalls of a function in a minute.
const maxCalls = 1e9

// key of a function in the files of Azure's trace of 2019.
type key struct{ owner, app, function string }

// ReadAzure2019 reads a day of the Azure Functions trace of 2019
// (AzureFunctionsDataset2019.md of Azure's public datasets), or of what has its
// format, as invitro's traces: invocations per function and minute, percentiles of
// durations by function, and of memory by application. The last two may be nil. A
// function without a duration has the median of those that have one; an
// application's memory is shared equally by its functions, and those of one without
// have the median.
func ReadAzure2019(invocations, durations, memory io.Reader) (*Trace, error) {
	took, err := readDurations(durations)
	if err != nil {
		return nil, fmt.Errorf("durations: %w", err)
	}
	mib, err := readMemory(memory)
	if err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	t := &Trace{}
	header, rows, err := table(invocations, 5, "HashOwner", "HashApp", "HashFunction", "Trigger")
	if err != nil {
		return nil, fmt.Errorf("invocations: %w", err)
	}
	if len(header)-4 > maxMinutes {
		return nil, fmt.Errorf("invocations: %d minutes: at most %d", len(header)-4, maxMinutes)
	}
	t.minutes = make([]column, len(header)-4)
	inApp := map[string]int{}
	err = rows(func(row []string) error {
		f := len(t.Functions)
		t.Functions = append(t.Functions, Function{Owner: strings.Clone(row[0]), App: strings.Clone(row[1]), Name: strings.Clone(row[2]), Trigger: intern(row[3])})
		for m, cell := range row[4:] {
			if cell == "0" || cell == "" {
				continue
			}
			n, err := count(cell)
			if err != nil {
				return fmt.Errorf("minute %d: %w", m+1, err)
			}
			t.add(f, m, n)
		}
		inApp[row[0]+"/"+row[1]]++
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("invocations: %w", err)
	}
	t.fill(took, mib, inApp)
	return t, nil
}

// fill gives the functions what the other files say.
func (t *Trace) fill(took map[key]Quantiles, mib map[string]float64, inApp map[string]int) {
	typical := Quantiles{0.1, 0.1, 0.5, 0.7, 1, 3, 5} // where there is no file
	if len(took) > 0 {
		all := make([]Quantiles, 0, len(took))
		for _, q := range took {
			all = append(all, q)
		}
		slices.SortFunc(all, func(a, b Quantiles) int { return slices.Compare(a[3:], b[3:]) })
		typical = all[len(all)/2]
	}
	memory := 170.0
	if len(mib) > 0 {
		var all []float64
		for _, v := range mib {
			all = append(all, v)
		}
		slices.Sort(all)
		memory = all[len(all)/2]
	}
	for i := range t.Functions {
		f := &t.Functions[i]
		var ok bool
		if f.Duration, ok = took[key{f.Owner, f.App, f.Name}]; !ok {
			f.Duration = typical
		}
		app := f.Owner + "/" + f.App
		if f.MemoryMiB, ok = mib[app]; !ok {
			f.MemoryMiB = memory
		} else {
			f.MemoryMiB /= float64(max(1, inApp[app]))
		}
		f.MemoryMiB = max(1, f.MemoryMiB)
	}
}

func readDurations(r io.Reader) (map[key]Quantiles, error) {
	out := map[key]Quantiles{}
	if r == nil {
		return out, nil
	}
	header, rows, err := table(r, 3, "HashOwner", "HashApp", "HashFunction")
	if err != nil {
		return nil, err
	}
	var at [7]int
	for i, p := range Percents {
		if at[i] = slices.Index(header, fmt.Sprintf("percentile_Average_%d", p)); at[i] < 0 {
			return nil, fmt.Errorf("there is no column percentile_Average_%d", p)
		}
	}
	return out, rows(func(row []string) error {
		var q Quantiles
		for i, c := range at {
			ms, err := number(row[c])
			if err != nil {
				return err
			}
			q[i] = float32(ms / 1000)
		}
		q.tidy()
		out[key{strings.Clone(row[0]), strings.Clone(row[1]), strings.Clone(row[2])}] = q
		return nil
	})
}

func readMemory(r io.Reader) (map[string]float64, error) {
	out := map[string]float64{}
	if r == nil {
		return out, nil
	}
	// The trace of 2019 has it by application; invitro's files name a function, too.
	header, rows, err := table(r, 2, "HashOwner", "HashApp")
	if err != nil {
		return nil, err
	}
	at := slices.Index(header, "AverageAllocatedMb")
	if at < 0 {
		return nil, errors.New("there is no column AverageAllocatedMb")
	}
	return out, rows(func(row []string) error {
		mb, err := number(row[at])
		if err != nil {
			return err
		}
		if mb < 0 || mb > 1<<20 {
			return fmt.Errorf("%v MB of memory: want 0 to %d", mb, 1<<20)
		}
		out[row[0]+"/"+row[1]] = mb
		return nil
	})
}

// table reads a CSV file whose header begins with these columns, and has so many at
// least. rows calls f for each row, which is as long as the header and not to be kept.
func table(r io.Reader, least int, columns ...string) (header []string, rows func(f func([]string) error) error, err error) {
	in := csv.NewReader(bufio.NewReaderSize(r, 1<<20))
	header, err = in.Read()
	if err != nil {
		return nil, nil, fmt.Errorf("reading the header: %w", err)
	}
	if len(header) < least || !slices.Equal(header[:len(columns)], columns) {
		return nil, nil, fmt.Errorf("the header is %.100q: want %s and more", strings.Join(header, ","), strings.Join(columns, ","))
	}
	in.ReuseRecord = true
	header = slices.Clone(header)
	in.FieldsPerRecord = len(header)
	return header, func(f func([]string) error) error {
		for {
			row, err := in.Read()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("reading a row: %w", err) // it names the line
			}
			if err := f(row); err != nil {
				line, _ := in.FieldPos(0)
				return fmt.Errorf("line %d: %w", line, err)
			}
		}
	}, nil
}

// number reads a finite one.
func number(s string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0, fmt.Errorf("%.40q is not a number", s)
	}
	return v, nil
}

// count reads a count of calls; some files have them as 3.0.
func count(s string) (uint64, error) {
	v, err := number(s)
	if err != nil || v < 0 || v > maxCalls || v != math.Trunc(v) {
		return 0, fmt.Errorf("%.40q calls: want a whole number of at most %g", s, maxCalls)
	}
	return uint64(v), nil
}

var triggers = []string{"http", "timer", "event", "queue", "storage", "orchestration", "others"}

// intern returns the one copy of a trigger's name.
func intern(s string) string {
	if i := slices.Index(triggers, s); i >= 0 {
		return triggers[i]
	}
	return strings.Clone(s)
}
