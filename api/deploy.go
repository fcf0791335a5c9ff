package api

import "time"

// DeployStage is a step of a deployment, or of making a snapshot.
type DeployStage string

const (
	StagePulling      DeployStage = "pulling"       // image layers; Done and Total are bytes where known
	StageBuilding     DeployStage = "building disk" // layers into a root disk
	StageBooting      DeployStage = "booting"       // kernel, agent, entrypoint
	StageReady        DeployStage = "ready"         // the function's server answers
	StageSnapshotting DeployStage = "snapshotting"  // pause, device state, digests, sync
	StageChecking     DeployStage = "checking"      // a start from the snapshot, and a request
	StageDone         DeployStage = "done"          // it serves
	StageFailed       DeployStage = "failed"        // nothing was changed; Error says why
)

// DeployEvent tells how far a deployment is. Each stage has an event when it
// begins (Took 0) and one when it is over; pulling and building have more of
// them between, as bytes get done.
type DeployEvent struct {
	Stage    DeployStage   `json:"stage"`
	Detail   string        `json:"detail,omitempty"`
	Done     int64         `json:"done,omitempty"`  // bytes
	Total    int64         `json:"total,omitempty"` // bytes; 0: not known
	Took     time.Duration `json:"took_ns,omitempty"`
	Function *Function     `json:"function,omitempty"` // with StageDone of a deployment
	Snapshot *Snapshot     `json:"snapshot,omitempty"` // with StageDone, the one that was made
	Error    string        `json:"error,omitempty"`    // with StageFailed
}
