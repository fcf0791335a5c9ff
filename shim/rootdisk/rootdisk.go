// Package rootdisk finds the root disk of one of containerd's containers: made of
// its image's layers as containerd's content store has them, once per image, so
// that nothing is pulled twice; or of its files, where the image is not known or
// has been changed. Package shim calls it when a container is created.
package rootdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	digests "github.com/opencontainers/go-digest"

	"github.com/skep-dev/skep/image"
)

// Maker makes root disks for the containers of one containerd.
type Maker struct {
	Address   string // of containerd's socket
	Namespace string // of containerd's
	Images    *image.Store
}

// Container is one whose root disk is wanted.
type Container struct {
	ID string
	// Mounts are what its root would be mounted from, at Target; without any its
	// root is the directory Target.
	Mounts []mount.Mount
	Target string
}

// Disk returns the container's root disk, made unless it is there. It is in use
// until the store is closed.
func (m *Maker) Disk(ctx context.Context, c Container) (image.Image, error) {
	img, why, err := m.ofImage(ctx, c)
	if err != nil {
		return image.Image{}, fmt.Errorf("making the root disk of container %s: %w", c.ID, err)
	}
	if why == "" {
		return img, nil
	}
	if img, err = m.ofFiles(ctx, c); err != nil {
		return image.Image{}, fmt.Errorf("making the root disk of container %s of its files (%s): %w", c.ID, why, err)
	}
	return img, nil
}

// ofImage makes the disk of the container's image. Where that is not what the
// container's root is, why says so.
func (m *Maker) ofImage(ctx context.Context, c Container) (disk image.Image, why string, err error) {
	if len(c.Mounts) == 0 {
		return disk, "it has a root directory of its own", nil
	}
	if changed(c.Mounts) {
		return disk, "its root has been written to", nil
	}
	conn, err := grpc.NewClient("unix://"+strings.TrimPrefix(m.Address, "unix://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return disk, "", err
	}
	defer conn.Close()
	ctx = namespaces.WithNamespace(ctx, m.Namespace)
	img, ref, why, err := m.find(ctx, conn, c.ID)
	if err != nil || why != "" {
		return disk, why, err
	}
	if disk, err = m.Images.FetchImage(ctx, ref, img); errors.Is(err, errdefs.ErrNotFound) {
		return disk, "containerd does not keep its image's layers", nil
	}
	return disk, "", err
}

// find asks containerd for a container's image.
func (m *Maker) find(ctx context.Context, conn *grpc.ClientConn, id string) (img v1.Image, ref, why string, err error) {
	answer, err := containersapi.NewContainersClient(conn).Get(ctx, &containersapi.GetContainerRequest{ID: id})
	if err != nil {
		return nil, "", "", fmt.Errorf("asking containerd at %s for the container: %w", m.Address, errgrpc.ToNative(err))
	}
	record := answer.Container
	if ref = record.Image; ref == "" || record.SnapshotKey == "" {
		return nil, "", "containerd does not know its image", nil
	}
	image, err := imagesapi.NewImagesClient(conn).Get(ctx, &imagesapi.GetImageRequest{Name: ref})
	if err != nil {
		if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
			return nil, "", fmt.Sprintf("its image %s is gone", ref), nil
		}
		return nil, "", "", fmt.Errorf("asking containerd for image %s: %w", ref, err)
	}
	img, err = open(ctx, proxy.NewContentStore(conn), image.Image.Target)
	switch {
	case errdefs.IsNotFound(err):
		return nil, "", "containerd does not keep its image's manifest", nil
	case err != nil:
		return nil, "", "", fmt.Errorf("image %s: %w", ref, err)
	}
	// A snapshot that is made of something else than the image is not the image.
	want, err := chain(img)
	if err != nil {
		return nil, "", "", fmt.Errorf("image %s: %w", ref, err)
	}
	snap, err := snapshotsapi.NewSnapshotsClient(conn).Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: record.Snapshotter, Key: record.SnapshotKey})
	if err != nil {
		return nil, "", "", fmt.Errorf("asking containerd for snapshot %s: %w", record.SnapshotKey, errgrpc.ToNative(err))
	}
	if snap.Info.Parent != want {
		return nil, "", "its root is of another snapshot than its image's", nil
	}
	return img, ref, "", nil
}

// chain is the name that containerd gives to the snapshot of an image's layers.
func chain(img v1.Image) (string, error) {
	file, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	var layers []digests.Digest
	for _, d := range file.RootFS.DiffIDs {
		layers = append(layers, digests.Digest(d.String()))
	}
	return identity.ChainID(layers).String(), nil
}

// changed tells a root that somebody has written to: what is mounted over the
// layers is not empty. Microvms leave it alone.
func changed(mounts []mount.Mount) bool {
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				entries, err := os.ReadDir(dir)
				return err != nil || len(entries) > 0
			}
		}
	}
	return false
}

// ofFiles makes the disk of what the container's root holds now.
func (m *Maker) ofFiles(ctx context.Context, c Container) (disk image.Image, err error) {
	root := c.Target
	if len(c.Mounts) > 0 {
		if err := os.MkdirAll(root, 0o711); err != nil {
			return disk, err
		}
		if err := mount.All(c.Mounts, root); err != nil {
			return disk, fmt.Errorf("mounting its root: %w", err)
		}
		defer func() { err = errors.Join(err, mount.UnmountRecursive(root, 0)) }()
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return disk, err
	}
	return m.Images.FetchTree(ctx, "container:"+c.ID, root)
}
