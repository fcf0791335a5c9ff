package api

// Image is a root disk in the daemon's store, as `skep image ls` shows it.
type Image struct {
	Digest    string   `json:"digest"`
	DiskBytes int64    `json:"disk_bytes"`
	Functions []string `json:"functions,omitempty"` // with a kept revision that is deployed from it, or an instance
	Snapshots []string `json:"snapshots,omitempty"` // that need it
	Problem   string   `json:"problem,omitempty"`   // why it cannot be used
}

// InUse says whether a function or a snapshot needs the image.
func (i Image) InUse() bool { return len(i.Functions)+len(i.Snapshots) > 0 }
