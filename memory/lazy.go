package memory

import "context"

// lazyPolicy prefetches nothing: every page is served when it is asked for.
type lazyPolicy struct{ *Policies }

func (lazyPolicy) Name() string { return "lazy" }

func (p lazyPolicy) Open(ctx context.Context, src Source) (Session, error) {
	s, err := p.open(ctx, p.Name(), src, nil)
	if err != nil {
		return nil, err
	}
	return s, nil
}
