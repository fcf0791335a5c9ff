package experiment

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Plan lists what there is to measure for the settings, in order.
// and why experiments are left out.
func Plan(set Settings) (plan []Point, without []string, err error) {
	planned, deployed := map[string]bool{}, map[string]bool{}
	for _, name := range set.Experiments {
		e, err := Find(name)
		if err != nil {
			return nil, nil, err
		}
		if e.Unavailable != nil {
			if why := e.Unavailable(set); why != "" {
				without = append(without, name+": "+why)
				continue
			}
		}
		if planned[e.data()] {
			continue
		}
		planned[e.data()] = true
		for _, p := range e.points(set) {
			p.Experiment = e.data()
			if !deployed[p.Function] {
				deployed[p.Function] = true
				p.Seconds += deploySeconds
			}
			plan = append(plan, p)
		}
	}
	return plan, without, nil
}

// deploySeconds is about how long making a function takes, and its snapshot,
// when its image is there.
const deploySeconds = 10

// measurer finds what measures the points of that name.
func measurer(data string) (*Experiment, error) {
	for _, e := range All() {
		if e.data() == data {
			return e, nil
		}
	}
	return nil, fmt.Errorf("nothing measures %q", data)
}

// Left are the points that the store does not have, and about how long they take.
func (s *Store) Left(plan []Point) (left []Point, takes time.Duration) {
	for _, p := range plan {
		if !s.Has(p) {
			left = append(left, p)
			takes += seconds(p.Seconds)
		}
	}
	return left, takes
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Progress is told of a run.
type Progress interface {
	Begin(Point)
	Done(Point, []Sample)
	Again(Point, error) // it failed and is tried once more
}

// maxFailed is how many points may fail before a run is given up.
const maxFailed = 5

// Run measures the points and stores the samples. A point that fails is tried
// once more and then left for another run; too many of them end this one.
func Run(ctx context.Context, lab *Lab, store *Store, points []Point, progress Progress) error {
	lab.measured = store
	var failed []error
	for _, p := range points {
		samples, err := measure(ctx, lab, p, progress)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %s: %w", p.Experiment, p, context.Cause(ctx)) // err is what came of it
		case err != nil:
			if failed = append(failed, fmt.Errorf("%s: %s: %w", p.Experiment, p, err)); len(failed) == maxFailed {
				return errors.Join(failed...)
			}
			continue
		}
		if err := store.Add(p, samples); err != nil {
			return err
		}
		progress.Done(p, samples)
	}
	return errors.Join(failed...)
}

func measure(ctx context.Context, lab *Lab, p Point, progress Progress) ([]Sample, error) {
	e, err := measurer(p.Experiment)
	if err != nil {
		return nil, err
	}
	progress.Begin(p)
	samples, err := e.Measure(ctx, lab, p)
	if err != nil && ctx.Err() == nil {
		progress.Again(p, err)
		samples, err = e.Measure(ctx, lab, p)
	}
	return samples, err
}

// one wraps the sample of a point that has a single one.
func one(s Sample, err error) ([]Sample, error) {
	if err != nil {
		return nil, err
	}
	return []Sample{s}, nil
}
