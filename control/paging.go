package control

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skep-dev/skep/api"
)

// maxPage bounds how many items one page of a list may have.
const maxPage = 10_000

// place is where in its list an item is. Lists that change between two pages are read
// on from there, whether or not the item still exists.
type place struct {
	order int64
	name  string
}

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(p.order, o.order), strings.Compare(p.name, o.name))
}

// in is the place as the address of a page of that list has it. It names the list: in
// another it would be a place too, and a wrong one.
func (p place) in(list string) string {
	return list + ":" + strconv.FormatInt(p.order, 10) + ":" + p.name
}

func parsePlace(list, s string) (place, error) {
	rest, ours := strings.CutPrefix(s, list+":")
	order, name, ok := strings.Cut(rest, ":")
	n, err := strconv.ParseInt(order, 10, 64)
	if !ours || !ok || err != nil {
		return place{}, badRequest("query: after is %.80q: want it as the Link header of the page before of this list has it", s)
	}
	return place{n, name}, nil
}

// Lists that places are in.
const (
	ofFunctions   = "functions"
	ofInstances   = "instances"
	ofSnapshots   = "snapshots"
	ofExperiments = "experiments"
)

// Places of what is listed, in the order in which it is.
func functionPlace(f api.FunctionStatus) place { return place{0, f.Name} }
func instancePlace(i api.Instance) place       { return place{nanos(i.Created), i.ID} }
func snapshotPlace(s api.Snapshot) place       { return place{-nanos(s.Created), s.ID} }
func experimentPlace(e api.Experiment) place   { return place{-nanos(e.Changed), e.Name} }

// nanos is a time since 1970, 0 for the zero time, which is beyond what fits.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// answerPage answers with the part of a list that the query's limit and after ask for.
func answerPage[T any](w http.ResponseWriter, r *http.Request, of string, all []T, at func(T) place) error {
	q := r.URL.Query()
	limit, err := queryInt(q, "limit", maxPage)
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b T) int { return at(a).compare(at(b)) })
	if after := q.Get("after"); after != "" {
		last, err := parsePlace(of, after)
		if err != nil {
			return err
		}
		first := slices.IndexFunc(all, func(item T) bool { return at(item).compare(last) > 0 })
		if first < 0 {
			first = len(all)
		}
		all = all[first:]
	}
	if limit > 0 && len(all) > limit {
		all = all[:limit]
		linkNext(w, r, at(all[limit-1]).in(of))
	}
	return answer(w, list(all))
}

// linkNext says where the next page is (RFC 8288).
func linkNext(w http.ResponseWriter, r *http.Request, after string) {
	q := r.URL.Query()
	q.Set("after", after)
	w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+q.Encode()+`>; rel="next"`)
}
