package control

import (
	"context"
	"net/http"

	"github.com/skep-dev/skep/api"
)

// Store is what the control API needs of the node's object store.
type Store interface {
	PushSnapshot(ctx context.Context, id string) (api.PushedSnapshot, error)
	PullSnapshot(ctx context.Context, function, id string) (api.Snapshot, error)
	RemoteSnapshots(ctx context.Context, function string) ([]api.RemoteSnapshot, error)
	RemoveRemoteSnapshot(ctx context.Context, function, id string) error
	CollectStore(ctx context.Context, o api.CollectRequest) (api.Collected, error)
	VerifyStore(ctx context.Context, function string, quick bool) (api.StoreVerified, error)
	StoreUsage(ctx context.Context, function string) (api.StoreUsage, error)
}

func (s *Server) pushSnapshot(w http.ResponseWriter, r *http.Request) error {
	p, err := s.o.Node.PushSnapshot(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answer(w, p)
}

func (s *Server) pullSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req api.PullRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if req.Function == "" {
		return badRequest("function: no function named")
	}
	snap, err := s.o.Node.PullSnapshot(r.Context(), req.Function, req.ID)
	if err != nil {
		return err
	}
	return answer(w, snap)
}

func (s *Server) remoteSnapshots(w http.ResponseWriter, r *http.Request) error {
	q, err := queryOf(r, "function")
	if err != nil {
		return err
	}
	all, err := s.o.Node.RemoteSnapshots(r.Context(), q.Get("function"))
	if err != nil {
		return err
	}
	return answer(w, list(all))
}

func (s *Server) removeRemoteSnapshot(w http.ResponseWriter, r *http.Request) error {
	if err := s.o.Node.RemoveRemoteSnapshot(r.Context(), r.PathValue("function"), r.PathValue("id")); err != nil {
		return err
	}
	return answer(w, struct{}{})
}

func (s *Server) collectStore(w http.ResponseWriter, r *http.Request) error {
	var req api.CollectRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if req.Grace < 0 || req.Keep < 0 {
		return badRequest("grace and keep: want no less than zero")
	}
	c, err := s.o.Node.CollectStore(r.Context(), req)
	if err != nil {
		return err
	}
	c.Removed = list(c.Removed)
	return answer(w, c)
}

func (s *Server) verifyStore(w http.ResponseWriter, r *http.Request) error {
	q, err := queryOf(r, "function", "quick")
	if err != nil {
		return err
	}
	quick, err := queryBool(q, "quick")
	if err != nil {
		return err
	}
	v, err := s.o.Node.VerifyStore(r.Context(), q.Get("function"), quick)
	if err != nil {
		return err
	}
	v.Problems = list(v.Problems)
	return answer(w, v)
}

func (s *Server) storeUsage(w http.ResponseWriter, r *http.Request) error {
	q, err := queryOf(r, "function")
	if err != nil {
		return err
	}
	u, err := s.o.Node.StoreUsage(r.Context(), q.Get("function"))
	if err != nil {
		return err
	}
	u.Snapshots = list(u.Snapshots)
	return answer(w, u)
}
