package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skep-dev/skep/api"
)

// Options of a run.
type Options struct {
	Plan *Plan
	// URL of a call, in which {function}, {ms} and {mib} stand for the function's name, for
	// how long it is to run and what memory it is to take. Host is the Host header, with
	// {function} too; "": as the URL says.
	URL, Host string
	Dir       string        // of results; one that has some of the same plan is gone on with
	Timeout   time.Duration // of a call; default 70s
	// InFlight bounds the calls at once; default 10000. A call that is due beyond it waits,
	// which counts as its latency.
	InFlight int
	// Memory is asked every second, and recorded; nil: not.
	Memory func(context.Context) (Memory, error)
	// Progress is told every second; nil: nobody is.
	Progress func(Progress)
}

// Memory is what a server's instances hold.
type Memory struct {
	At        time.Duration `json:"at_ns"`
	Instances int           `json:"instances"`
	MiB       float64       `json:"mib"`
}

// Sample is one call that is over.
type Sample struct {
	N        int           `json:"n"` // index in the plan
	Function int           `json:"function"`
	At       time.Duration `json:"at_ns"`           // when it was due
	Late     time.Duration `json:"late_ns"`         // how much later it was sent
	Latency  time.Duration `json:"latency_ns"`      // from when it was due until all of its answer was there
	Took     time.Duration `json:"took_ns"`         // that it was to run for
	Status   int           `json:"status"`          // 0: no answer
	Start    api.StartKind `json:"start,omitempty"` // as skep says; "": it did not
	Lost     string        `json:"lost,omitempty"`  // why the function's answer is not there
}

// Progress of a run.
type Progress struct {
	Elapsed, Length                time.Duration
	Sent, Done, Lost, InFlight, Of int
	Cold                           int
	Median, P99                    time.Duration // of those that ended since the last
	Over                           bool
}

func (o *Options) check() error {
	switch {
	case o.Plan == nil || len(o.Plan.Calls) == 0:
		return errors.New("there is nothing to call")
	case o.Dir == "":
		return errors.New("there is no directory for results")
	}
	u, err := url.Parse(o.expand(o.URL, Call{}))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is no URL that can be called: want http://HOST/PATH, with {function}, {ms} and {mib} where those go", o.URL)
	}
	return nil
}

func (o *Options) expand(s string, c Call) string {
	name := ""
	if c.Function < len(o.Plan.Functions) {
		name = o.Plan.Functions[c.Function]
	}
	return strings.NewReplacer("{function}", name, "{ms}", strconv.FormatFloat(float64(c.Took)/1e6, 'f', -1, 64), "{mib}", strconv.Itoa(c.MiB)).Replace(s)
}

// Run sends what the plan has and the directory has not yet, and returns what came of all
// of it. When ctx ends no more is sent, what is under way is given up, and a later run goes
// on from there: a call whose answer was not recorded is made again.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	if o.Timeout == 0 {
		o.Timeout = 70 * time.Second
	}
	if o.InFlight == 0 {
		o.InFlight = 10000
	}
	s, err := openStore(o)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	r := &runner{o: o, store: s, places: make(chan struct{}, o.InFlight)}
	r.client = &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: o.InFlight, MaxIdleConns: 0, IdleConnTimeout: 10 * time.Second, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	err = errors.Join(r.run(ctx), s.close())
	r.client.CloseIdleConnections()
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	return Read(o.Dir)
}

type runner struct {
	o      Options
	store  *store
	client *http.Client
	places chan struct{} // one for each call under way
	begin  time.Time     // when the plan began, or would have

	sent, done, lost, cold, flying atomic.Int64
}

func (r *runner) run(ctx context.Context) error {
	calls := r.o.Plan.Calls
	first := 0
	for first < len(calls) && r.store.has[first] {
		first++
	}
	if first == len(calls) {
		return nil
	}
	for _, has := range r.store.has {
		if has {
			r.sent.Add(1)
			r.done.Add(1)
		}
	}
	r.begin = time.Now().Add(-calls[first].At)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.store.failed = cancel
	var aside, flights sync.WaitGroup
	over := make(chan struct{})
	aside.Go(func() { r.watch(ctx, over) })
	err := r.send(ctx, first, &flights)
	if err != nil {
		cancel(err)
	}
	flights.Wait()
	close(over)
	aside.Wait()
	return errors.Join(err, r.store.err())
}

// send sends each call when it is due.
func (r *runner) send(ctx context.Context, first int, flights *sync.WaitGroup) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := first; n < len(r.o.Plan.Calls); n++ {
		if r.store.has[n] {
			continue
		}
		c := r.o.Plan.Calls[n]
		if wait := time.Until(r.begin.Add(c.At)); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		select {
		case r.places <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		r.sent.Add(1)
		r.flying.Add(1)
		flights.Go(func() {
			s := r.call(ctx, n, c)
			r.flying.Add(-1)
			<-r.places
			if ctx.Err() != nil && s.Lost != "" {
				return // it was given up
			}
			r.done.Add(1)
			if s.Lost != "" {
				r.lost.Add(1)
			}
			if s.Cold() {
				r.cold.Add(1)
			}
			r.store.add(s)
		})
	}
	return nil
}

// Cold says that it waited for a start, as the server says.
func (s *Sample) Cold() bool { return s.Start != "" && s.Start != api.StartWarm }

// call makes one call.
func (r *runner) call(ctx context.Context, n int, c Call) Sample {
	due := r.begin.Add(c.At)
	s := Sample{N: n, Function: c.Function, At: c.At, Took: c.Took, Late: max(0, time.Since(due))}
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	err := r.ask(ctx, c, &s)
	s.Latency = time.Since(due)
	if err != nil {
		s.Lost = err.Error()
	}
	return s
}

func (r *runner) ask(ctx context.Context, c Call, s *Sample) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.o.expand(r.o.URL, c), nil)
	if err != nil {
		return err
	}
	req.Body = noRetry{}
	if r.o.Host != "" {
		req.Host = r.o.expand(r.o.Host, c)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	s.Status, s.Start = resp.StatusCode, api.StartKind(resp.Header.Get(api.HeaderStart))
	body := &strings.Builder{}
	if _, err := io.Copy(io.Discard, io.TeeReader(resp.Body, &capped{w: body, left: 200})); err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("status %d: %s", resp.StatusCode, strings.TrimSpace(body.String()))
	}
	return nil
}

// noRetry is an empty body that net/http does not know to be empty: it would silently
// make a call again whose connection broke off, and a lost one would not be seen.
type noRetry struct{}

func (noRetry) Read([]byte) (int, error) { return 0, io.EOF }
func (noRetry) Close() error             { return nil }

// capped passes on the first bytes.
type capped struct {
	w    io.Writer
	left int
}

func (c *capped) Write(b []byte) (int, error) {
	n := min(len(b), c.left)
	c.left -= n
	_, err := c.w.Write(b[:n])
	return len(b), err
}

// watch records memory and tells of the progress, every second until all is over.
func (r *runner) watch(ctx context.Context, over <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-tick.C:
		case <-over:
			ended = true
		}
		if r.o.Memory != nil && !ended {
			// A daemon that is being started anew does not say; that is no reason to stop.
			if m, err := r.o.Memory(ctx); err == nil {
				m.At = time.Since(r.begin)
				r.store.memory(m)
			}
		}
		if r.o.Progress != nil {
			p := Progress{Elapsed: time.Since(r.begin), Length: r.o.Plan.Calls[len(r.o.Plan.Calls)-1].At, Of: len(r.o.Plan.Calls), Sent: int(r.sent.Load()), Done: int(r.done.Load()),
				Lost: int(r.lost.Load()), InFlight: int(r.flying.Load()), Cold: int(r.cold.Load()), Over: ended}
			p.Median, p.P99 = r.store.lately()
			r.o.Progress(p)
		}
		if ended {
			return
		}
	}
}
