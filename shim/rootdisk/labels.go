package rootdisk

import (
	"context"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Labels are those that containerd has of a container: of a pod's pause container,
// the pod's own.
func (m *Maker) Labels(ctx context.Context, id string) (map[string]string, error) {
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(m.Address, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answer, err := containersapi.NewContainersClient(conn).Get(namespaces.WithNamespace(ctx, m.Namespace), &containersapi.GetContainerRequest{ID: id})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	return answer.Container.Labels, nil
}
