// Package deploy has the parts of deploy/ that programs of this tree apply, too: `make
// cluster` makes what a user's cluster gets by `kubectl apply -k deploy/`.
package deploy

import _ "embed"

// RuntimeClass has pods with runtimeClassName: skep be microVMs, on nodes with NodeLabel.
//
//go:embed runtimeclass.yaml
var RuntimeClass []byte

// NodeLabel is that of nodes that have skep.
const NodeLabel = "skep.dev/node=true"

// KnativeFeatures patches Knative's config map config-features.
//
//go:embed knative/features.yaml
var KnativeFeatures []byte
