package api

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// InvocationQuery selects records. The zero value selects the newest hundred of
// all functions.
type InvocationQuery struct {
	ID       string
	Function string
	Since    time.Time // of arrival; zero: no bound
	Until    time.Time // before that; zero: no bound
	Status   string    // "504", or "5xx" for a class; empty: any
	Failure  Failure   // of that kind; "any": of whichever; empty: failed or not
	Start    StartKind
	Instance string
	Slower   time.Duration // whose total is longer
	Limit    int           // the newest so many; 0: 100
	After    string        // older than the record with this id: the page after the one that ended with it
}

// Container is what a record says of a container, under containerd.
type Container struct {
	ID        string         `json:"id"`
	Name      string         `json:"name,omitempty"` // in its pod
	Pod       string         `json:"pod,omitempty"`
	Namespace string         `json:"namespace,omitempty"` // the pod's; of a container without a pod containerd's
	Image     string         `json:"image,omitempty"`     // its digest
	Ready     string         `json:"ready,omitempty"`     // what it had to do with a ready snapshot
	Made      bool           `json:"made,omitempty"`      // the snapshot that it started from was made for it
	Steps     []Step         `json:"steps,omitempty"`     // of its start
	Exit      *ContainerExit `json:"exit,omitempty"`      // nil: it has not ended, or nobody could say so
}

// Step is a part of a start, and when it was.
type Step struct {
	Name  string        `json:"name"`
	Began time.Time     `json:"began"`
	Took  time.Duration `json:"took_ns"`
}

// ContainerExit is a container's end.
type ContainerExit struct {
	Code        int       `json:"code"`
	OutOfMemory bool      `json:"out_of_memory,omitempty"`
	Time        time.Time `json:"time"`
}

// AnyFailure selects invocations that failed, whoever's doing it was.
const AnyFailure Failure = "any"

// Failures lists the kinds.
var Failures = []Failure{FailureClient, FailureQueue, FailureTimeout, FailureFunction, FailurePlatform}

// StatusRange returns the first and the last status that a query wants.
func (q InvocationQuery) StatusRange() (first, last int, err error) {
	if q.Status == "" {
		return 0, 999, nil
	}
	if class, ok := strings.CutSuffix(q.Status, "xx"); ok {
		if n, err := strconv.Atoi(class); err == nil && n >= 1 && n <= 9 {
			return n * 100, n*100 + 99, nil
		}
	} else if n, err := strconv.Atoi(q.Status); err == nil && n >= 0 && n <= 999 {
		return n, n, nil
	}
	return 0, 0, fmt.Errorf("status is %q: want a number such as 504, or a class such as 5xx", q.Status)
}

// Validate reports the first thing that is wrong with a query.
func (q InvocationQuery) Validate() error {
	if _, _, err := q.StatusRange(); err != nil {
		return err
	}
	if q.Failure != "" && q.Failure != AnyFailure && !slices.Contains(Failures, q.Failure) {
		return fmt.Errorf("failure is %q: want any, client, queue, timeout, function or platform", q.Failure)
	}
	if !slices.Contains([]StartKind{"", StartBoot, StartRestore, StartWarm}, q.Start) {
		return fmt.Errorf("start is %q: want boot, restore or warm", q.Start)
	}
	if q.Slower < 0 {
		return fmt.Errorf("slower_than is %v: want a duration that is not negative", q.Slower)
	}
	return nil
}

// values is the query on the wire.
func (q InvocationQuery) values() url.Values {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	for name, t := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !t.IsZero() {
			set(name, t.Format(time.RFC3339Nano))
		}
	}
	set("id", q.ID)
	set("after", q.After)
	set("function", q.Function)
	set("status", q.Status)
	set("failure", string(q.Failure))
	set("start", string(q.Start))
	set("instance", q.Instance)
	if q.Slower != 0 {
		set("slower_than", q.Slower.String())
	}
	if q.Limit != 0 {
		set("limit", strconv.Itoa(q.Limit))
	}
	return v
}
