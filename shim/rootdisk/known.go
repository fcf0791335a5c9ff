package rootdisk

import (
	"context"
	"strings"

	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	digests "github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Known says which of these images containerd still has, in any namespace. Its
// own collection has taken the others.
func (m *Maker) Known(ctx context.Context, images []string) (known map[string]bool, err error) {
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(m.Address, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	list, err := namespacesapi.NewNamespacesClient(conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	store := proxy.NewContentStore(conn)
	known = map[string]bool{}
	for _, ns := range list.Namespaces {
		ctx := namespaces.WithNamespace(ctx, ns.Name)
		for _, digest := range images {
			if known[digest] {
				continue
			}
			_, err := store.Info(ctx, digests.Digest(digest))
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, err
			}
			known[digest] = err == nil
		}
	}
	return known, nil
}
