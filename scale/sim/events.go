package sim

// What happens.
const (
	done  = iota // a request of instance id ends
	ready        // the start of instance id ends
	look         // function id is to be looked at
)

type event struct {
	at   int64
	id   int32
	kind uint8
}

// events are a heap with four children to a node, the soonest first: half as deep as a
// binary one, and a node's children are in one line of the cache.
type events struct{ heap []event }

func (e *events) push(v event) {
	e.heap = append(e.heap, v)
	h := e.heap
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if h[parent].at <= v.at {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = v
}

func (e *events) pop() event {
	h := e.heap
	top := h[0]
	v := h[len(h)-1]
	h = h[:len(h)-1]
	e.heap = h
	i := 0
	for {
		child := 4*i + 1
		if child >= len(h) {
			break
		}
		least := child
		for c := child + 1; c < min(child+4, len(h)); c++ {
			if h[c].at < h[least].at {
				least = c
			}
		}
		if h[least].at >= v.at {
			break
		}
		h[i] = h[least]
		i = least
	}
	if len(h) > 0 {
		h[i] = v
	}
	return top
}
